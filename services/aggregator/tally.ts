import type { UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { countedDevices } from "#common/domain/site.js";

/** Refusals of one device that a tally keeps; further ones are judged and counted but not written down. */
export const KEPT_REFUSALS = 16;

/** A tally without verdicts. */
export function emptyTally(round: string, job: string): UpdateTally {
  return { apiVersion: API_VERSION, kind: "UpdateTally", metadata: newMeta(round, { job }), verdicts: [], lastSeq: 0 };
}

/** Devices of which an update counts. */
export function acceptedDevices(tally: UpdateTally): Set<string> {
  const devices = new Set<string>();
  for (const { accepted, manifest } of tally.verdicts) {
    if (accepted && manifest) for (const device of countedDevices(manifest)) devices.add(device);
  }
  return devices;
}

/** The tally with one more verdict, which must be of a later commit. A device that floods the log does not grow it. */
export function withVerdict(tally: UpdateTally, verdict: Verdict): UpdateTally {
  const device = verdict.manifest?.device;
  const refusals = tally.verdicts.filter((each) => !each.accepted && each.manifest?.device === device).length;
  const kept = verdict.accepted || refusals < KEPT_REFUSALS;
  return {
    ...tally,
    verdicts: kept ? [...tally.verdicts, verdict] : tally.verdicts,
    lastSeq: verdict.commitSeq,
  };
}
