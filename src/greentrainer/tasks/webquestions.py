"""WebQuestions (Berant et al., 2013): a question in, a short answer out."""

from greentrainer.tasks.base import Example
from greentrainer.tasks.published import Dataset, Form
from greentrainer.tasks.row import Row


def example(row: Row, form: Form) -> Example:
    """The first answer is learned, every one is right.

    The paper's format is `question:{q}</s>answer:{a}</s>`.
    """
    question, answers = row.text("question", "qText"), row.texts("answers")
    if form.name == "paper":
        return Example(f"question:{question}", answers[0], f"{form.eos}answer:", answers)
    if form.name == "source":
        return Example(question, answers[0], references=answers)
    return Example(f"Question: {question}", f" {answers[0].strip()}", "\nAnswer:", answers)


WEBQUESTIONS = Dataset("webquestions", "stanfordnlp/web_questions", ("exact",), example)
