"""A stand-in for the Hugging Face hub: the few endpoints that pushing and fetching speak, over HTTP on this machine."""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse

TOKEN = "hf_stand_in"
LARGE = ".safetensors"  # goes the way of large files


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: `repos[id][branch or commit]` is a dictionary from path to content."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.blobs, self.seen = {}, {}, {}, []
        self.failing = {}  # part of a path -> status to answer with
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def commit(self, repo_id, files, branch="main"):
        """Adds files to a branch; returns the new commit."""
        repo = self.repos.setdefault(repo_id, {"main": {}})
        repo[branch] = repo[branch] | files
        commit = hashlib.sha1(
            json.dumps([repo_id, branch, sorted(map(str, repo[branch].items()))]).encode()
        ).hexdigest()
        repo[commit] = repo[branch]
        return commit

    def resolve(self, repo_id, revision):
        """The commit that a branch or a commit stands for."""
        repo = self.repos[repo_id]
        return revision if len(revision) == 40 else next(c for c in reversed(repo) if repo[c] is repo[revision])


class Handler(http.server.BaseHTTPRequestHandler):
    # HTTP/1.0, a connection a request: after `shutdown` nobody answers.
    def log_message(self, *_):
        pass

    def answer(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body), "Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        hub, path = self.server, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub.seen.append(f"{self.command} {path}")
        for part, status in hub.failing.items():
            if part in path:
                return self.answer({"error": "said the stand-in"}, status)
        if self.command in ("POST", "PUT") and not path.startswith("lfs/"):
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
        return self.route(hub, path.split("/"), body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def route(self, hub, parts, body):
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo_id = f"{asked['organization']}/{asked['name']}"
                if repo_id in hub.repos:
                    return self.answer({"error": "exists", "url": f"{hub.url}/{repo_id}"}, 409)
                hub.private[repo_id] = asked.get("visibility") == "private" or asked.get("private", False)
                hub.commit(repo_id, {".gitattributes": b""})
                return self.answer({"url": f"{hub.url}/{repo_id}"})
            case ["api", "validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            case ["lfs", oid]:
                hub.blobs[oid] = body
                return self.answer()
            case [owner, name, "info", "lfs", "objects", "batch"]:
                objects = [
                    o | {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            case ["api", "models", owner, name, *rest]:
                repo_id = f"{owner}/{name}"
                if repo_id not in hub.repos:
                    return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return self.model(hub, repo_id, rest, body)
            case [owner, name, "resolve", revision, *file]:
                repo = hub.repos.get(f"{owner}/{name}", {})
                content = repo.get(revision, {}).get("/".join(file))
                if content is None:
                    return self.answer(
                        status=404, X_Error_Code="EntryNotFound" if revision in repo else "RevisionNotFound"
                    )
                etag = hashlib.sha256(content).hexdigest()
                commit = hub.resolve(f"{owner}/{name}", revision)
                return self.answer(content, X_Repo_Commit=commit, ETag=f'"{etag}"')
        return self.answer({"error": f"the stand-in does not know {parts}"}, 501)

    def model(self, hub, repo_id, rest, body):
        repo, revision = hub.repos[repo_id], "/".join(rest[1:]) or "main"
        if rest[:1] == ["branch"]:
            repo.setdefault(revision, repo["main"])
            return self.answer({})
        if revision not in repo:
            return self.answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        if rest[:1] == ["preupload"]:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(LARGE)], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if rest[:1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")
            }
            files |= {x["value"]["path"]: hub.blobs[x["value"]["oid"]] for x in lines if x["key"] == "lfsFile"}
            oid = hub.commit(repo_id, files, revision)
            return self.answer({"success": True, "commitUrl": f"{hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})
        commit, files = hub.resolve(repo_id, revision), repo[revision]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self.answer(entries)
        return self.answer({"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
