// A brush over a picture. What is painted is white in the mask that `blob` gives, in the picture's own pixels.
export class Brush {
  constructor(box, radius) {
    this.canvas = box.querySelector("canvas");
    this.image = box.querySelector("img");
    this.radius = radius;
    this.erasing = false;
    this.painted = false;
    this.context = this.canvas.getContext("2d");
    const ready = () => { this.fit(); if (box.dataset.mask) this.load(box.dataset.mask); };
    if (this.image.complete && this.image.naturalWidth) ready(); else this.image.addEventListener("load", ready);
    this.canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.canvas.setPointerCapture(event.pointerId);
      this.last = this.place(event);
      this.stroke(this.last);
    });
    this.canvas.addEventListener("pointermove", (event) => { if (this.last) this.stroke(this.place(event)); });
    const end = () => { this.last = null; };
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
  }

  fit() {
    if (this.canvas.width === this.image.naturalWidth && this.canvas.height === this.image.naturalHeight) return;
    this.canvas.width = this.image.naturalWidth;
    this.canvas.height = this.image.naturalHeight;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.canvas.width, (event.clientY - box.top) / box.height * this.canvas.height];
  }

  stroke(to) {
    const pen = this.context;
    pen.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    pen.strokeStyle = "#d8267f";
    pen.lineWidth = 2 * this.radius() / 100 * Math.max(this.canvas.width, this.canvas.height);
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...this.last);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    this.last = to;
    this.painted = true;
  }

  load(url) {
    const mask = new Image();
    mask.onload = () => {
      const made = document.createElement("canvas");
      made.width = this.canvas.width;
      made.height = this.canvas.height;
      const pen = made.getContext("2d");
      pen.drawImage(mask, 0, 0, made.width, made.height);
      const data = pen.getImageData(0, 0, made.width, made.height);
      for (let at = 0; at < data.data.length; at += 4) {
        data.data[at + 3] = data.data[at];
        [data.data[at], data.data[at + 1], data.data[at + 2]] = [216, 38, 127];
      }
      this.context.putImageData(data, 0, 0);
      this.painted = true;
    };
    mask.src = url;
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.painted = false;
  }

  blob(width, height) {
    const made = document.createElement("canvas");
    made.width = width || this.canvas.width;
    made.height = height || this.canvas.height;
    const pen = made.getContext("2d");
    pen.drawImage(this.canvas, 0, 0, made.width, made.height);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, made.width, made.height);
    pen.globalCompositeOperation = "destination-over";
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, made.width, made.height);
    return new Promise((done) => made.toBlob(done, "image/png"));
  }
}
