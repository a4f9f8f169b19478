// Makes pages quicker to use; each works without it.
"use strict";

function reveal(row, image, button, token) {
  const base = image.getAttribute("src").replace(/\/blurred$/, "/reveal");
  const body = new URLSearchParams({ token });
  button.disabled = true;
  fetch(base, { method: "POST", body, headers: { Accept: "application/json" }, credentials: "same-origin" })
    .then((answer) => (answer.ok ? answer.json() : Promise.reject(answer.status)))
    .then((said) => {
      image.src = said.picture;
      image.alt = "Row " + row;
      button.remove();
    })
    .catch((status) => {
      button.disabled = false;
      button.textContent = "Not revealed (" + status + "): try again";
    });
}

for (const form of document.querySelectorAll("form.reveal")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const image = form.parentElement.querySelector("img");
    reveal(form.dataset.row, image, form.querySelector("button"), form.querySelector("[name=token]").value);
  });
}

for (const place of document.querySelectorAll(".reveal-later")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Reveal";
  button.setAttribute("aria-label", "Reveal row " + place.dataset.row);
  button.addEventListener("click", () => {
    const token = place.closest("form").querySelector("[name=token]").value;
    reveal(place.dataset.row, place.querySelector("img"), button, token);
  });
  place.append(button);
}

for (const drop of document.querySelectorAll(".drop")) {
  const input = drop.querySelector("input[type=file]");
  const list = drop.querySelector(".chosen");
  const show = () => {
    list.replaceChildren();
    for (const file of input.files) {
      const line = document.createElement("li");
      line.textContent = file.name + " (" + Math.ceil(file.size / 1024) + " KiB)";
      list.append(line);
    }
  };
  input.addEventListener("change", show);
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const all = new DataTransfer();
    const given = [...(input.multiple ? input.files : []), ...event.dataTransfer.files];
    for (const file of input.multiple ? given : given.slice(0, 1)) all.items.add(file);
    input.files = all.files;
    show();
  });
}

// A dropped file must not replace the page, with what was filled in.
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => event.preventDefault());
}
