class SecedeEvent:
    def __init__(
        self, *, key: str, compute_duration: float, stimulus_id: str
    ) -> None: ...
