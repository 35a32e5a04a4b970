// Bring in a model: the file goes as it is, with how much of it has arrived.
import { say } from "./studio.js";

const by = (id) => document.getElementById(id);
by("model-file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (!file) return;
  const request = new XMLHttpRequest();
  const show = (shown) => { by("sending").hidden = by("sent").hidden = !shown; };
  request.upload.addEventListener("progress", (now) => { if (now.lengthComputable) by("sent").value = now.loaded / now.total; });
  request.addEventListener("load", () => {
    show(false);
    if (request.status === 201) { location.reload(); return; }
    let told = "This file could not be taken.";
    try { told = JSON.parse(request.responseText).error.problem; } catch { /* it said nothing */ }
    say(told);
  });
  request.addEventListener("error", () => { show(false); say("The studio does not answer. Is it still running?"); });
  by("sending").textContent = `Sending ${file.name}`;
  show(true);
  request.open("POST", `/api/v1/models?name=${encodeURIComponent(file.name)}`);
  request.setRequestHeader("content-type", "application/octet-stream");
  request.send(file);
});
