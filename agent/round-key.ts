import type { RoundTask } from "#proto/shoal/v1/round.js";

/** Characters of a job's uid in a key: two lives of one job name do not share them by chance. */
const UID_CHARACTERS = 8;

type Named = Pick<RoundTask, "job" | "round" | "jobUid">;

// Keys are file names, so nothing but letters and digits of a uid goes in.
function withUid(name: string, uid: string): string {
  const short = uid.replace(/[^A-Za-z0-9]/g, "").slice(0, UID_CHARACTERS);
  return short === "" ? name : `${name}@${short}`;
}

/**
 * What a round is known by on this device: "<round>@<start of the job's uid>". A job that was deleted and applied again
 * numbers its rounds from 1 again; its rounds are others all the same.
 */
export function roundKey({ round, jobUid }: Named): string {
  return withUid(round, jobUid);
}

/** What a job's state is kept under on this device: "<job>@<start of its uid>". */
export function jobKey({ job, jobUid }: Named): string {
  return withUid(job, jobUid);
}

/** Key of the job of a round's key: round names end in "-<number>". */
export function jobKeyOfRound(key: string): string {
  return key.replace(/-\d+(@|$)/, "$1");
}

/** Whether two keys of jobs are of one name but of different lives. */
export function isOtherLife(a: string, b: string): boolean {
  return a !== b && a.replace(/@.*/, "") === b.replace(/@.*/, "");
}
