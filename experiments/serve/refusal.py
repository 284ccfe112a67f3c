"""Why a request is not served, in the form of the OpenAI API."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
      status: of HTTP.
      message: one line: what, where and how to mend it.
      param: the field of the body; None for none.
      code: for programs, as "model_not_found".
      retry: seconds after which to try again; 0 for never.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry: float = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, " ".join(message.split())
        self.param, self.code, self.retry = param, code, retry

    @property
    def body(self) -> dict[str, Any]:
        """What is answered."""
        kind = INVALID if self.status < 500 else SERVER
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, where it makes sense."""
        return {"Retry-After": str(max(1, round(self.retry)))} if self.retry else {}


def wrong(name: str, message: str) -> Refused:
    """A field of the body that cannot be served."""
    return Refused(400, f"{name}: {message}", name)
