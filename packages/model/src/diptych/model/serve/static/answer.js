// The third side of the page: questions about a picture, with the likeliest answers and where the question's words look.
"use strict";

let asked = null; // the Blob that questions are about
let askedAddress = null; // of the picture that is shown

/** What this side offers is known with the model. */
function meetAnswers() {
  for (const way of ["answer-tab", "answer-painting", "answer-picture"]) $(way).hidden = !model.can_answer;
  if (!model.can_answer) return;
  $("question").maxLength = model.limits.letters;
  begin($("question"), model.questions, $("questions"), $("question-vocabulary"), checkQuestion);
}

function checkQuestion() {
  sayUnknown($("question"), $("question-unknown"));
}

help($("question"), $("questions"), $("question-vocabulary"), $("answer-form"), checkQuestion);

/** Show a picture to ask about. */
function lookAtPicture(content, paintedFrom) {
  if (!content) return;
  asked = content;
  if (askedAddress) URL.revokeObjectURL(askedAddress);
  askedAddress = URL.createObjectURL(content);
  $("asked").src = askedAddress;
  $("asked").hidden = false;
  $("asked").alt = paintedFrom ? `Painting of: ${paintedFrom}` : "The picture that is asked about";
  $("asked-empty").hidden = true;
  $("asked-heat").hidden = $("answered").hidden = true;
  say($("answer-notice"), "");
  say($("asked-origin"), paintedFrom && `Painted from: ${paintedFrom}`);
  if (matchMedia("(hover: hover)").matches) $("question").focus({ preventScroll: true });
}

$("asked").addEventListener("error", () => {
  asked = null;
  $("asked").hidden = true;
  $("asked-empty").hidden = false;
  say($("answer-notice"), "This is not a picture that can be shown. Send JPEG, PNG, WebP, GIF, BMP or AVIF.");
});

$("answer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  during($("answer-button"), $("answer-notice"), $("asked-photo"), async () => {
    const question = $("question").value.trim();
    if (!asked) throw new Refusal("Choose a picture first.");
    if (!question) throw new Refusal("Write a question first.");
    const picture = asked;
    const query = new URLSearchParams({ question, attention: "true" });
    const reply = await sendPicture("api/answer?" + query, picture);
    if (picture !== asked) return; // another one was chosen meanwhile
    const [found] = reply.answers;
    $("asked-words").replaceChildren();
    fillWords($("asked-words"), found.words, $("asked-heat"), $("asked-words"));
    $("answers").replaceChildren(...found.ranked.map(answerItem));
    $("asked-heat").hidden = $("answered").hidden = false;
    lookAt($("asked-words"), $("asked-heat"), null);
    if (innerWidth <= 768) $("asked-photo").scrollIntoView({ block: "start" });
  });
});

/** An answer and its probability, as a bar too. */
function answerItem(one) {
  const bar = element("span", { className: "share" }, element("span"));
  bar.firstChild.style.width = `${(100 * one.probability).toFixed(2)}%`;
  bar.ariaHidden = true;
  const share = one.probability < 0.001 ? "< 0.1 %" : `${(100 * one.probability).toFixed(1)} %`;
  return element("li", {}, element("span", { className: "answer", textContent: one.answer }), bar, element("span", { className: "number", textContent: share }));
}

$("answer-painting").addEventListener("click", () => {
  show("answer");
  lookAtPicture(paintedFile(), caption);
});
$("answer-picture").addEventListener("click", () => {
  show("answer");
  lookAtPicture(picture, origin);
});

meet();
