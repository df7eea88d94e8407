import { execFileSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";

const BALLAST = ".ballast";
const PIECE = Buffer.alloc(1024 * 1024);

/** Small file systems in memory, which can be filled to the last byte. Only root may make them. */
export class Mounts {
  readonly #folders: string[] = [];

  /** Mounts one at a folder; throws with the reason if this machine does not let us. */
  add(folder: string, bytes: number): void {
    mkdirSync(folder, { recursive: true });
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${bytes},mode=0700`, "tmpfs", folder], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#folders.push(folder);
  }

  /** Writes until nothing more fits. */
  fill(folder: string): void {
    const file = openSync(join(folder, BALLAST), "a");
    try {
      for (let piece = PIECE.length; piece >= 1;) {
        try {
          // A short write is followed by the error.
          if (writeSync(file, PIECE, 0, piece) === 0) break;
        } catch {
          piece = Math.floor(piece / 16);
        }
      }
    } finally {
      closeSync(file);
    }
  }

  free(folder: string): void {
    rmSync(join(folder, BALLAST), { force: true });
  }

  /** Removes all of them with what is in them. */
  close(): void {
    for (const folder of this.#folders.splice(0).reverse()) {
      try {
        execFileSync("umount", ["-l", folder], { stdio: ["ignore", "ignore", "pipe"] });
      } catch {
        // Gone already.
      }
    }
  }
}
