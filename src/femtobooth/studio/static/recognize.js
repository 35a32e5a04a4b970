// Pictures that are dropped are looked at; of a folder, each picture is sent with the name of the folder it lies in.
import { say } from "./studio.js";

const see = document.getElementById("see"), input = see.querySelector("input[type=file]");
addEventListener("dragover", (event) => { event.preventDefault(); see.classList.add("over"); });
addEventListener("dragleave", () => see.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  see.classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  see.requestSubmit();
});

const classes = document.getElementById("classes"), told = document.getElementById("classes-told");
classes.querySelector("input").addEventListener("change", async (event) => {
  const form = new FormData();
  for (const name of ["start", "how"]) form.append(name, document.getElementById(name).value);
  let count = 0;
  for (const file of event.target.files) {
    const parts = file.webkitRelativePath.split("/");
    if (!file.type.startsWith("image/") || parts.length < 3) continue;
    form.append("files", file);
    form.append("labels", parts[parts.length - 2]);
    count += 1;
  }
  if (!count) { say("There are no folders of pictures in this folder."); return; }
  told.textContent = `Sending ${count} pictures…`;
  try {
    const answer = await fetch(classes.action, { method: "POST", body: form });
    if (answer.ok) { location.href = answer.url; return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    told.textContent = page.querySelector(".lead")?.textContent || "That did not work.";
  } catch { told.textContent = "The studio does not answer. Is it still running?"; }
});
