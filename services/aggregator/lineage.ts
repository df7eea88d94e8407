import type { LineageCheck } from "#proto/shoal/v1/aggregator_service.js";
import { CodecSpec, type TrainingJob } from "#proto/shoal/v1/job.js";
import { UpdateManifest, type Round, type RoundResult, type UpdateTally, type Verdict } from "#proto/shoal/v1/round.js";
import { countedDevices } from "#common/domain/site.js";
import { type EarlierRound, isAsynchronous } from "#common/domain/staleness.js";
import { summarise } from "./finalize.js";
import { strategyByName } from "./strategies/table.js";

/** "Unverifiable": what the check needs is not kept any more, which is no fault. */
export type CheckOutcome = "Verified" | "Unverifiable" | "Broken";

/** A check's finding. */
export type Finding = LineageCheck & { outcome: CheckOutcome };

/** The resources of one finished round. */
export interface RoundRecord {
  job: TrainingJob;
  name: string;
  number: number;
  round: Round;
  tally: UpdateTally | undefined;
  result: RoundResult;
  /** The rounds whose updates it may have folded; none unless the job is asynchronous. */
  earlier: readonly EarlierRound[];
}

/** What a round must start from: digests of weights, outer state and the weights' change, each empty where there is none. */
export interface Heritage {
  weights: string;
  outerState: string;
  delta: string;
}

const finding = (name: string, outcome: CheckOutcome, message: string): Finding => ({ name, outcome, message });

/** A check that held. */
export const verified = (name: string, message: string): Finding => finding(name, "Verified", message);
/** A check for which something is not there any more. */
export const unverifiable = (name: string, message: string): Finding => finding(name, "Unverifiable", message);
/** A check that failed. */
export const broken = (name: string, message: string): Finding => finding(name, "Broken", message);

/** Verified if there are no faults, else broken with the first of them and how many more there are. */
export function judged(name: string, faults: readonly string[], message: string): Finding {
  const [first] = faults;
  if (first === undefined) return verified(name, message);
  return broken(name, faults.length === 1 ? first : `${first} (and ${faults.length - 1} more)`);
}

/** What the round after this one must start from. */
export function heritageOf({ weights, outerState, delta }: RoundResult): Heritage {
  return {
    weights: weights?.digest ?? "",
    outerState: outerState?.digest ?? "",
    delta: delta?.blob?.digest ?? "",
  };
}

const named = (digest: string | undefined): string => (digest === undefined || digest === "" ? "nothing" : digest);

function checkStart({ round, number }: RoundRecord, heritage: Heritage | undefined): Finding {
  if (heritage === undefined) return unverifiable("start", "what the round before published is not known");
  const { task, outerState } = round.spec ?? {};
  const before = number === 1 ? "the job's start" : `round ${number - 1}`;
  const faults: string[] = [];
  if (task?.weights?.digest !== heritage.weights) {
    faults.push(`it starts from ${named(task?.weights?.digest)}, and ${before} left ${named(heritage.weights)}`);
  }
  if ((outerState?.digest ?? "") !== heritage.outerState) {
    faults.push(`its outer state is ${named(outerState?.digest)}, and ${before} left ${named(heritage.outerState)}`);
  }
  if ((task?.delta?.blob?.digest ?? "") !== heritage.delta) {
    faults.push(`it names the change ${named(task?.delta?.blob?.digest)}, and ${before} left ${named(heritage.delta)}`);
  }
  return judged("start", faults, `it starts from what ${before} left`);
}

const codecText = (codec: CodecSpec | undefined): string =>
  JSON.stringify(CodecSpec.toJSON(codec ?? CodecSpec.fromPartial({})));

/** A job's strategy and codec never change, so a round that belongs to this very job was folded with them. */
function checkStrategy({ job, name, number, round }: RoundRecord): Finding {
  const { spec } = round;
  const strategy = job.spec?.strategy?.name ?? "";
  const faults: string[] = [];
  if (spec?.job !== job.metadata?.name || spec?.number !== number || spec.task?.round !== name) {
    faults.push(`it says that it is round ${spec?.number ?? 0} of "${spec?.job ?? ""}"`);
  }
  if (spec?.task?.jobUid !== job.metadata?.uid) faults.push("it belongs to another job that had this name");
  if (strategyByName(strategy) === undefined) faults.push(`there is no strategy "${strategy}"`);
  if (codecText(spec?.task?.codec) !== codecText(job.spec?.codec)) {
    faults.push(`its codec is "${spec?.task?.codec?.name ?? ""}", the job's is "${job.spec?.codec?.name ?? ""}"`);
  }
  const codec = job.spec?.codec?.name ?? "";
  return judged("strategy", faults, `"${strategy}" with codec "${codec}", as the job says`);
}

/** The round that an update of this staleness began in, and what was judged of it. */
function originOf(
  { number, round, tally, earlier }: Pick<RoundRecord, "number" | "round" | "tally" | "earlier">,
  staleness: number,
): EarlierRound | undefined {
  if (staleness === 0) return { round, tally };
  return earlier.find((one) => one.round.spec?.number === number - staleness);
}

function checkFoldSet(record: RoundRecord): Finding {
  const { round, result, earlier } = record;
  const foldSet = round.status?.foldSet ?? [];
  const before = new Set(earlier.flatMap((one) => one.round.status?.foldSet.map(({ commitSeq }) => commitSeq) ?? []));
  const faults: string[] = [];
  if (foldSet.length !== result.folded.length) {
    faults.push(`${foldSet.length} updates were frozen and ${result.folded.length} folded`);
  }
  const devices = new Set<string>();
  const works = new Set<string>();
  for (const [i, { device, commitSeq, staleness }] of foldSet.entries()) {
    const folded = result.folded[i];
    if (folded?.commitSeq !== commitSeq || folded.manifest?.device !== device || folded.staleness !== staleness) {
      faults.push(`entry ${i} is commit ${commitSeq} of ${device}, and commit ${folded?.commitSeq ?? 0} was folded`);
    }
    if (commitSeq <= (foldSet[i - 1]?.commitSeq ?? 0)) faults.push(`commit ${commitSeq} is out of the log's order`);
    if (before.has(commitSeq)) faults.push(`commit ${commitSeq} of ${device} was folded in an earlier round`);
    const origin = originOf(record, staleness)?.round;
    if (origin === undefined) faults.push(`commit ${commitSeq} of ${device} is ${staleness} rounds stale`);
    const assigned = new Set(origin?.status?.assignments.map((one) => one.device));
    for (const counted of folded?.manifest === undefined ? [device] : countedDevices(folded.manifest)) {
      const work = `${counted} ${staleness}`;
      if (works.has(work)) faults.push(`${counted} counts twice`);
      if (!assigned.has(counted)) faults.push(`${counted} had no assignment`);
      works.add(work);
      devices.add(counted);
    }
  }
  const stale = foldSet.filter(({ staleness }) => staleness > 0).length;
  const staleText = stale > 0 ? ` a round; ${stale} began in earlier rounds` : "";
  return judged(
    "foldSet",
    faults,
    `${foldSet.length} commits in log order, for ${devices.size} invited devices, each of them once${staleText}`,
  );
}

/** Whether two manifests say the same, to the byte. */
export function isSameManifest(a: UpdateManifest | undefined, b: UpdateManifest | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return Buffer.compare(UpdateManifest.encode(a).finish(), UpdateManifest.encode(b).finish()) === 0;
}

function verdictFault(folded: Verdict, judgedAs: Verdict | undefined, origin: Round | undefined): string | undefined {
  const { manifest, commitSeq } = folded;
  const who = `commit ${commitSeq} of ${manifest?.device ?? ""}`;
  if (judgedAs?.accepted !== true) return `${who} was folded, and no verdict accepts it`;
  if (!isSameManifest(manifest, judgedAs.manifest) || folded.norm !== judgedAs.norm) {
    return `${who} was folded with another manifest or norm than it was judged with`;
  }
  if (manifest?.round !== origin?.metadata?.name) return `${who} is of round "${manifest?.round ?? ""}"`;
  const { jobUid = "", weights } = origin?.spec?.task ?? {};
  if (manifest !== undefined && manifest.jobUid !== "" && manifest.jobUid !== jobUid) {
    return `${who} is of another job that had this name`;
  }
  return manifest?.baseDigest === (weights?.digest ?? "")
    ? undefined
    : `${who} starts from other weights than the round`;
}

function checkVerdicts(record: RoundRecord): Finding {
  const { result, round, tally } = record;
  const faults = result.folded.flatMap((folded) => {
    const origin = originOf(record, folded.staleness);
    const judgedAs = origin?.tally?.verdicts.find(({ commitSeq }) => commitSeq === folded.commitSeq);
    return verdictFault(folded, judgedAs, origin?.round) ?? [];
  });
  const own = result.folded.filter(({ staleness }) => staleness === 0).length;
  const late = (tally?.verdicts ?? []).filter(({ accepted }) => accepted).length - own;
  const fate = isAsynchronous(round.spec) ? "were left to later rounds" : "came too late";
  const also = late > 0 ? `; ${late} more ${fate}` : "";
  return judged("verdicts", faults, `${record.result.folded.length} accepted${also}`);
}

function checkSums({ result }: RoundRecord): Finding {
  const sums = summarise(result.folded);
  const faults = Object.entries(sums).flatMap(([key, value]) => {
    const published = result[key as keyof typeof sums];
    return Object.is(published, value) ? [] : [`${key} is ${published ?? "unset"} and comes to ${value ?? "unset"}`];
  });
  return judged(
    "sums",
    faults,
    `${sums.tokens} tokens, ${sums.bytesUp} bytes up, ${sums.bytesDown} down, and the losses`,
  );
}

/** A round of evaluation, or without any trained update, leaves everything as it was. */
function checkOutcome({ round, result }: RoundRecord): Finding[] {
  const trained = result.folded.some(({ manifest }) => (manifest?.values ?? 0) > 0);
  if (trained && round.spec?.evaluationOnly !== true) return [];
  const { weights, outerState } = heritageOf(result);
  const isSame = weights === round.spec?.task?.weights?.digest && outerState === (round.spec.outerState?.digest ?? "");
  return isSame ? [] : [broken("weights", "nobody trained, and yet the round published other weights or state")];
}

/**
 * All that the resources of a finished round say of one another. Pure; what lies in the log and the blobs is checked by
 * the caller.
 * @param heritage undefined if the round before could not be read.
 */
export function checkRecord(record: RoundRecord, heritage: Heritage | undefined): Finding[] {
  return [
    checkStart(record, heritage),
    checkStrategy(record),
    checkFoldSet(record),
    checkVerdicts(record),
    checkSums(record),
    ...checkOutcome(record),
  ];
}
