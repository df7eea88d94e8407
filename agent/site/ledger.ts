import { writeAtomically, type Disk } from "../disk.js";
import type { SiteUpdate } from "./state.js";

/** What must be known of a site's update after a restart; its bytes and acknowledgements are the outbox's. */
interface Line {
  readonly round: string;
  readonly members: readonly string[];
  readonly commitSeq: number;
}

function parseLine(bytes: Uint8Array | undefined): Line | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof value !== "object" || value === null) return undefined;
    const { round, members, commitSeq } = value as Partial<Line>;
    const fine = typeof round === "string" && Array.isArray(members) && typeof commitSeq === "number";
    return fine ? { round, members: members as string[], commitSeq } : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Which members are in which update, one small file each. Written before the update is spooled, so that a restart never
 * folds a device anew whose work is on its way; what was never spooled is forgotten then.
 */
export class SiteLedger {
  private constructor(
    private readonly disk: Disk,
    private readonly folder: string,
    private readonly lines: Map<string, Line>,
  ) {}

  static async open(disk: Disk, folder: string): Promise<SiteLedger> {
    await disk.makeFolder(folder);
    const lines = new Map<string, Line>();
    for (const name of await disk.list(folder)) {
      const line = name.startsWith(".") ? undefined : parseLine(await disk.read(`${folder}/${name}`));
      if (line === undefined) await disk.remove(`${folder}/${name}`);
      else lines.set(name, line);
    }
    return new SiteLedger(disk, folder, lines);
  }

  /** Returns when it is durable. */
  async note(key: string, line: Line): Promise<void> {
    await writeAtomically(this.disk, this.folder, key, [new TextEncoder().encode(`${JSON.stringify(line)}\n`)]);
    this.lines.set(key, line);
  }

  /** Notes under which sequence an update was committed. */
  async noteSeq(key: string, commitSeq: number): Promise<void> {
    const line = this.lines.get(key);
    if (line !== undefined) await this.note(key, { ...line, commitSeq });
  }

  seqOf(key: string): number {
    return this.lines.get(key)?.commitSeq ?? 0;
  }

  get keys(): string[] {
    return [...this.lines.keys()];
  }

  async forget(key: string): Promise<void> {
    if (this.lines.delete(key)) await this.disk.remove(`${this.folder}/${key}`);
  }

  /**
   * The updates as the outbox knows them: spooled, or committed. Forgets the others.
   * @param spooled what waits in the outbox, by key
   */
  async recover(
    spooled: ReadonlyMap<string, { commitSent: boolean }>,
    committed: ReadonlySet<string>,
  ): Promise<SiteUpdate[]> {
    const updates: SiteUpdate[] = [];
    for (const [key, { round, members, commitSeq }] of [...this.lines]) {
      const waiting = spooled.get(key);
      const rest = { key, round, members, commitSeq, failures: 0, waiting: false };
      if (committed.has(key)) updates.push({ ...rest, phase: "committed", commitSent: true });
      else if (waiting !== undefined) updates.push({ ...rest, phase: "spooled", commitSent: waiting.commitSent });
      else await this.forget(key);
    }
    return updates;
  }
}
