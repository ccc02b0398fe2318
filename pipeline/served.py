"""The code of a model in MLflow, which runs this file when it serves one: an episode a row comes in, answers go out."""

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ServedLearner(PythonModel):
    """Its request has the columns of `servable.columns`, an episode in each row; its answer those of `servable.Answer`."""

    def load_context(self, context: Any) -> None:
        """Read weights and description; what reads them is imported here, since to make a model nobody needs it."""
        from pathlib import Path

        from pipeline.servable import opened

        self.learner = opened(Path(context.artifacts["about"]), Path(context.artifacts["weights"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Learn from every row's support and say what its queries are.

        Raises:
            MlflowException: the request is wrong; the server answers 400 with the sentence.
        """
        from pipeline.errors import InputError
        from pipeline.learners.learner import Mode

        mode = (params or {}).get("mode", Mode.INDUCTIVE.value)
        if mode not in list(Mode):
            raise MlflowException.invalid_parameter_value(f"mode = {mode!r}: is neither of {', '.join(Mode)}")
        try:
            answers = [self.learner.answer(row, mode=Mode(mode)) for row in model_input.to_dict("records")]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame([answer._asdict() for answer in answers])


set_model(ServedLearner())
