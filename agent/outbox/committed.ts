import { writeAtomically, type Disk } from "../disk.js";
import { jobKeyOfRound } from "../round-key.js";

interface Marker {
  /** Key of the round. */
  readonly round: string;
  /** Key of its job. */
  readonly job: string;
  readonly atMs: number;
}

const MS_PER_DAY = 86_400_000;
/** Markers kept; the control plane never assigns a round this far back. */
const KEPT = 1_000;

function parseMarker(round: string, bytes: Uint8Array | undefined): Marker {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof value === "object" && value !== null && "job" in value && "atMs" in value) {
      const { job, atMs } = value;
      if (typeof job === "string" && typeof atMs === "number") return { round, job, atMs };
    }
  } catch {
    // Its existence says enough, see below.
  }
  // A marker of unreadable content still stands for a committed round.
  return { round, job: jobKeyOfRound(round), atMs: 0 };
}

/** Durable markers of committed rounds: one small file each, named by the key of its round. */
export class CommittedRounds {
  readonly #disk: Disk;
  readonly #folder: string;
  readonly #markers: Map<string, Marker>;

  private constructor(disk: Disk, folder: string, markers: readonly Marker[]) {
    this.#disk = disk;
    this.#folder = folder;
    this.#markers = new Map(markers.map((marker) => [marker.round, marker]));
  }

  static async open(disk: Disk, folder: string): Promise<CommittedRounds> {
    const markers: Marker[] = [];
    for (const name of await disk.list(folder)) {
      if (name.startsWith(".")) await disk.remove(`${folder}/${name}`);
      else markers.push(parseMarker(name, await disk.read(`${folder}/${name}`)));
    }
    markers.sort((a, b) => a.atMs - b.atMs);
    const old = markers.splice(0, Math.max(0, markers.length - KEPT));
    for (const { round } of old) await disk.remove(`${folder}/${round}`);
    return new CommittedRounds(disk, folder, markers);
  }

  get rounds(): string[] {
    return [...this.#markers.keys()];
  }

  /** Key of the job of a committed round; undefined if it is not committed. */
  jobOf(round: string): string | undefined {
    return this.#markers.get(round)?.job;
  }

  /** Number committed in the UTC day of this time. */
  countOn(nowMs: number): number {
    const day = Math.floor(nowMs / MS_PER_DAY);
    return [...this.#markers.values()].filter(({ atMs }) => Math.floor(atMs / MS_PER_DAY) === day).length;
  }

  /** Returns when the marker is durable. */
  async add(round: string, job: string, atMs: number): Promise<void> {
    const bytes = new TextEncoder().encode(`${JSON.stringify({ job, atMs })}\n`);
    await writeAtomically(this.#disk, this.#folder, round, [bytes]);
    this.#markers.set(round, { round, job, atMs });
  }
}
