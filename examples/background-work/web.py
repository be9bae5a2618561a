"""POST adds a task, GET shows the completed tasks."""

import json

import tasks


async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["method"] == "POST":
        text, more = b"", True
        while more:
            message = await receive()
            text, more = text + message.get("body", b""), message.get("more_body", False)
        answer = {"accepted": text.decode(errors="replace")}
        tasks.add(answer["accepted"])
    else:
        answer = tasks.done()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
