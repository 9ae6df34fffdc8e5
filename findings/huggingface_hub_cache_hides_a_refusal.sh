#!/usr/bin/env bash
# huggingface_hub 2.4.0. A repository was downloaded once. Then its owner deletes it (404) or makes it private, or the
# token expires (401). hf_hub_download of the branch still returns the file of the cache, without an error or a warning,
# so a program never learns that its copy is no longer the one on the hub. model_info raises in each case.
# Guessed: the cache serves if the hub cannot be reached, and a hub that refuses raises. Seen: it serves in both cases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet huggingface_hub==2.4.0
HF_HOME="$folder/home" HF_HUB_DISABLE_XET=1 "$folder/venv/bin/python" - <<'PYTHON'
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

refusal = None  # (status, headers)


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        status, headers = refusal or (200, {"X-Repo-Commit": "c" * 40, "ETag": '"1"'})
        content = b"{}" if refusal is None else b""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

import huggingface_hub  # noqa: E402  it reads HF_ENDPOINT

print("huggingface_hub", huggingface_hub.__version__)
first = huggingface_hub.hf_hub_download("me/adapter", "config.json", token="hf_right")
warnings.simplefilter("error")
for what, refusal in {
    "deleted": (404, {"X-Error-Code": "RepoNotFound"}),
    "private now, no token": (401, {"X-Error-Code": "RepoNotFound"}),
    "token expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}.items():
    again = huggingface_hub.hf_hub_download("me/adapter", "config.json", token="hf_right")
    print(f"{what}: hf_hub_download returns the file of the cache: {again == first}")
    assert again == first, "changed"
    try:
        huggingface_hub.HfApi().model_info("me/adapter", token="hf_right")
    except huggingface_hub.errors.HfHubHTTPError as error:
        print(f"{what}: model_info raises {type(error).__name__}")
    else:
        raise SystemExit("changed: model_info does not raise")
PYTHON
