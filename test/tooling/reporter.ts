/** What a test run came to. */
export interface Tally {
  passed: number;
  failed: number;
  skipped: number;
}

/** Turns AVA's TAP lines into failures with their diagnostics, a little progress, and the counts. */
export interface Reporter {
  /** Takes the next line of TAP. */
  line(text: string): void;
  /** Counts a failure TAP did not speak of, such as a runner that died. */
  fail(title: string): void;
  /** The counts so far. */
  tally(): Tally;
  /** Every failure with its diagnostics, to be told once more where a reader of only the end of the output sees it. */
  failures(): string[];
}

/** How and where a reporter writes. */
export interface ReporterOptions {
  /** Takes one line of output. */
  write: (text: string) => void;
  /** Milliseconds since the run began. */
  elapsedMs: () => number;
  /** Writes a progress line after so many results, 1 names every test. */
  every: number;
}

const RESULT = /^(not )?ok \d+ - (.*?)( # (SKIP|TODO)\b.*)?$/;
const CLOSING = /^(TAP version \d+|\d+\.\.\d+|# (tests|pass|skip|fail) \d+|\s*)$/;

/** A reporter with nothing counted. A todo counts as skipped: it is a test that does not run. */
export function createReporter({ write, elapsedMs, every }: ReporterOptions): Reporter {
  const tally: Tally = { passed: 0, failed: 0, skipped: 0 };
  const failures: string[] = [];
  let inFailure = false;

  function tell(text: string): void {
    failures.push(text);
    write(text);
  }

  function progress(title: string, mark: string): void {
    const done = tally.passed + tally.failed + tally.skipped;
    const seconds = (elapsedMs() / 1000).toFixed(1);
    if (every === 1) write(`${mark} ${title} (${seconds} s)`);
    else if (done % every === 0) write(`  ${done} tests, ${tally.failed} failed (${seconds} s)`);
  }

  return {
    line(text) {
      const result = RESULT.exec(text);
      if (result === null) {
        if (inFailure && !CLOSING.test(text)) tell(`    ${text}`);
        return;
      }
      const [, not, title = "", , directive] = result;
      inFailure = not !== undefined && directive === undefined;
      if (directive !== undefined) {
        tally.skipped += 1;
        write(`- ${title} (${directive.toLowerCase()})`);
      } else if (inFailure) {
        tally.failed += 1;
        tell(`✘ ${title}`);
      } else {
        tally.passed += 1;
        progress(title, "✔");
      }
    },
    fail(title) {
      tally.failed += 1;
      inFailure = false;
      tell(`✘ ${title}`);
    },
    tally: () => ({ ...tally }),
    failures: () => [...failures],
  };
}

/** The closing line, read by people and CI alike: "N passed, N failed", with ", N skipped" if there are any. */
export function closingLine({ passed, failed, skipped }: Tally): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

/** Why a run must not count as good; undefined if it may. Skipping is for a desk, not for CI. */
export function refusal({ passed, failed, skipped }: Tally, ci: boolean): string | undefined {
  if (failed > 0) return `${failed} failed`;
  if (passed === 0) return "no test ran";
  if (ci && skipped > 0) return `${skipped} skipped, and CI skips nothing`;
  return undefined;
}
