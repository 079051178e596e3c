# loky 3.7 has no types: https://github.com/joblib/loky/issues
from concurrent.futures import Executor

class ProcessPoolExecutor(Executor):
    def __init__(self, max_workers: int | None = ...) -> None: ...

def get_reusable_executor(max_workers: int | None = ...) -> Executor: ...
