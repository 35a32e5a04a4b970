// One line over all pairs: moving one moves the rest.
const pairs = [...document.querySelectorAll(".versus")];
for (const pair of pairs) {
  pair.querySelector("input").addEventListener("input", (event) => {
    for (const one of pairs) {
      one.style.setProperty("--at", `${event.target.value}%`);
      one.querySelector("input").value = event.target.value;
    }
  });
}
document.getElementById("sides")?.addEventListener("change", (event) => event.currentTarget.submit());
