// Personal links as this browser reaches the study, which a proxy before it may have under a path or another name.
"use strict";

for (const link of document.querySelectorAll("[data-address]")) {
  link.textContent = new URL(link.dataset.address, location.href).href;
}
