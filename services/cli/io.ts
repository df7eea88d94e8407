/** Where a command reads and writes; the process's own streams outside of tests. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  /** Whether output goes to a terminal: progress bars there, plain lines elsewhere. */
  readonly terminal: boolean;
  /** Columns of the terminal. */
  readonly width: number;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Everything on standard input. */
  readStdin(): Promise<string>;
  nowMs(): number;
}

/** The streams of this process. */
export function processIo(): Io {
  return {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    terminal: process.stdout.isTTY,
    width: process.stdout.isTTY ? process.stdout.columns : 100,
    env: process.env,
    nowMs: () => Date.now(),
    async readStdin() {
      const chunks: Buffer[] = [];
      for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
      return Buffer.concat(chunks).toString("utf8");
    },
  };
}

/** One JSON value and a newline. */
export function writeJson(io: Io, value: unknown): void {
  io.out(`${JSON.stringify(value, null, 2)}\n`);
}
