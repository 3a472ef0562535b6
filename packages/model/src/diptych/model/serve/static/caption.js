// The second side of the page: captions with where their words look; and how pictures come in, for the third one too.
"use strict";

let picture = null; // the Blob that was captioned
let origin = ""; // the sentence that it was painted from
let address = null; // of the picture that is shown

function describe(content, paintedFrom) {
  if (!content) return;
  return during($("choose"), $("caption-notice"), $("photo"), async () => {
    const query = new URLSearchParams({ attention: "true", samples: $("caption-samples").value });
    // at 0 other packages write as their own options say, which may be to search for the likeliest caption
    if ($("caption-temperature").value > 0 || drawsWords()) query.set("temperature", $("caption-temperature").value);
    const reply = await sendPicture("api/caption?" + query, content);
    picture = content;
    origin = paintedFrom;
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(content);
    $("shown").src = address;
    $("shown").alt = reply.captions[0].text;
    $("shown").hidden = $("heat").hidden = false;
    $("photo-empty").hidden = true;
    say($("origin"), origin && `Painted from: ${origin}`);
    $("captions").replaceChildren(...reply.captions.map(captionItem));
    $("written").hidden = false;
    $("caption-again").disabled = false;
    lookAt($("captions"), $("heat"), null);
    if (innerWidth <= 768) scrollTo({ top: 0 });
  });
}

async function sendPicture(address, content) {
  if (model && content.size > model.limits.upload_bytes) {
    const mebibytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(2))} MiB`;
    throw new Refusal(
      `The picture has ${mebibytes(content.size)}, at most ${mebibytes(model.limits.upload_bytes)} are taken.`,
    );
  }
  const type = /^image\//.test(content.type) ? content.type : "application/octet-stream";
  return ask(address, { method: "POST", headers: { "Content-Type": type }, body: content });
}

function captionItem(found) {
  const line = element("p", { className: "words" });
  fillWords(line, found.words, $("heat"), $("captions"));
  const again = element("button", { type: "button", className: "strong paint-caption", textContent: "Paint this caption" });
  again.addEventListener("click", () => {
    $("sentence").value = found.text;
    checkWords();
    show("paint");
    paint({});
  });
  return element("li", {}, line, again);
}

/** Words of which each shows where it looked: on the cells of `heat`; one of those in `around` is chosen at a time. */
function fillWords(line, found, heat, around) {
  found.forEach((one, number) => {
    const word = element("button", { type: "button", textContent: one.word, ariaPressed: "false" });
    const look = () => lookAt(around, heat, word, one.cells);
    word.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look());
    word.addEventListener("focus", look);
    word.addEventListener("click", look);
    if (number && /[\p{L}\p{N}]/u.test(one.word)) line.append(" ");
    line.append(word);
  });
  line.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && lookAt(around, heat, null));
}

/** Darken the picture where the word did not look; null shows all of it. */
function lookAt(around, heat, word, weights = null) {
  for (const other of around.querySelectorAll(".chosen")) {
    other.classList.remove("chosen");
    other.ariaPressed = "false";
  }
  if (word) {
    word.classList.add("chosen");
    word.ariaPressed = "true";
  }
  const most = weights ? Math.max(...weights) : 1;
  [...heat.children].forEach((cell, number) => {
    const dark = weights ? 0.75 * (1 - weights[number] / most) : 0;
    cell.style.backgroundColor = `rgba(12, 16, 24, ${dark.toFixed(3)})`;
  });
}

/** A picture from outside goes to the side that is shown, if that takes any. */
function take(content) {
  if (shown() === "answer") {
    lookAtPicture(content, "");
  } else {
    show("caption");
    describe(content, "");
  }
}

for (const button of [$("choose"), $("answer-choose")]) button.addEventListener("click", () => $("file").click());
for (const input of [$("file"), $("snapshot")]) {
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = "";
  });
}
$("caption-again").addEventListener("click", () => describe(picture, origin));

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    for (const place of document.querySelectorAll(".drop")) place.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});

// --- the camera: the phone's own where there is one to tap for, else a viewfinder here

let stream = null;
let asking = false; // the browser asks whether the camera may be used

for (const button of [$("camera"), $("answer-camera")]) button.addEventListener("click", openCamera);

async function openCamera() {
  const notice = $(shown() + "-notice");
  if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) {
    $("snapshot").click();
    return;
  }
  if (asking || stream) return;
  asking = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    say(notice, "The camera cannot be used. Allow it in the browser, or choose a picture.");
    return;
  } finally {
    asking = false;
  }
  say(notice, "");
  $("video").srcObject = stream;
  $("viewfinder").showModal();
}
$("shoot").addEventListener("click", () => {
  const video = $("video");
  if (!video.videoWidth) return;
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((content) => {
    $("viewfinder").close();
    take(content);
  }, "image/jpeg", 0.92);
});
$("close-camera").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", () => {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
});
