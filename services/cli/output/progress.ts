const FULL = "█";
const PARTS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"] as const;

/** A bar of `width` cells of which the share `done` / `total` is filled, to an eighth of a cell. */
export function formatBar(done: number, total: number, width: number): string {
  const share = total > 0 ? Math.min(1, Math.max(0, done / total)) : 0;
  const eighths = Math.round(share * width * 8);
  const full = Math.floor(eighths / 8);
  const bar = FULL.repeat(full) + (PARTS[eighths % 8] ?? "");
  return bar.padEnd(width, "░");
}

/** Cuts a line to the columns of a terminal, so that redrawing it moves by whole lines. */
export function cutToWidth(line: string, width: number): string {
  const characters = Array.from(line);
  return characters.length <= width ? line : `${characters.slice(0, Math.max(0, width - 1)).join("")}…`;
}

/**
 * Control codes that replace `previous` lines by the new ones.
 * @param previous how many lines the last call drew; 0 at first
 */
export function redraw(previous: number, lines: readonly string[], width: number): string {
  const up = previous > 0 ? `\u001b[${previous}A\r` : "";
  const body = lines.map((line) => `\u001b[2K${cutToWidth(line, width)}\n`).join("");
  return `${up}${body}\u001b[J`;
}

/** Lines below the running output that are drawn anew in place; elsewhere than on a terminal they are left out. */
export class LiveArea {
  #drawn = 0;

  constructor(
    private readonly write: (text: string) => void,
    private readonly terminal: boolean,
    private readonly width: number,
  ) {}

  /** Shows these lines instead of the last ones. */
  show(lines: readonly string[]): void {
    if (!this.terminal) return;
    this.write(redraw(this.#drawn, lines, this.width));
    this.#drawn = lines.length;
  }

  /** A line that stays, above the live ones. */
  log(line: string): void {
    if (this.#drawn > 0) this.show([]);
    this.write(`${line}\n`);
  }
}
