from collections import deque

class BatchedSend:
    recent_message_log: deque[object]
