import { TrainingJob, TrainingJobStatus } from "#proto/shoal/v1/job.js";
import type * as rpc from "#proto/shoal/v1/job_service.js";
import { type ObjectMeta, WatchEventType } from "#proto/shoal/v1/meta.js";
import type { Round } from "#proto/shoal/v1/round.js";
import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { setCondition } from "#common/domain/condition.js";
import { checkAgainstModel, decodeTrainingJob } from "#common/domain/manifest.js";
import { ownRecord } from "#common/domain/own-record.js";
import { cutPage, parsePage } from "#common/domain/pages.js";
import { API_VERSION, isResourceName, nameViolations, newMeta, roundName } from "#common/domain/resources.js";
import type { Clock } from "#common/ports/clock.js";
import type { Kind, ResourceStore } from "#common/ports/resource-store.js";
import type { CollectableLog } from "#common/ports/update-log.js";
import { completeTrainingJob } from "#common/domain/typed-job.js";
import { explain } from "./explanation.js";
import { isFinal } from "./fleet-view.js";
import { changeOf } from "./job-change.js";
import { parseManifest } from "./manifest-text.js";
import { configOf, factsOf, readModel } from "./model-reading.js";

export interface JobApiParts {
  store: ResourceStore;
  updates: CollectableLog;
  clock: Clock;
}

const PAGES = { max: 1000, fallback: 100 };
const MAX_ATTEMPTS = 16;
const FINISHED = new Set(["Completed", "Cancelled", "Failed"]);

const noJob = (name: string): Answer<never> =>
  refuse("NOT_FOUND", `no job is named "${name.slice(0, 64)}": list jobs to see their names`);
/** The answer to a name that no resource can have; undefined to one that some may have. */
const badName = (field: string, name: string): Answer<never> | undefined =>
  isResourceName(name) ? undefined : invalid(...nameViolations(field, name));
const lostRaces = (): Answer<never> => refuse("ABORTED", "the job kept changing meanwhile; try again");
const isSelected = (job: TrainingJob, selector: Readonly<Record<string, string>>): boolean =>
  Object.entries(selector).every(([key, value]) => job.metadata?.labels[key] === value);

/** JobService without gRPC: researchers submit, follow and stop jobs. Any replica answers. */
export class JobApi {
  constructor(private readonly parts: JobApiParts) {}

  /** Creates a job or changes what may be changed; applying the same twice is "unchanged". */
  async apply({ source, dryRun }: rpc.JobServiceApplyRequest): Promise<Answer<rpc.JobServiceApplyResponse>> {
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const wanted = await this.decode(source);
      if (!wanted.ok) return wanted;
      const applied = await this.applyOnce(wanted.value, dryRun);
      if (applied !== undefined) return applied;
    }
    return lostRaces();
  }

  private async decode(source: rpc.JobServiceApplyRequest["source"]): Promise<Answer<TrainingJob>> {
    if (source === undefined) {
      return invalid({ field: "source", value: "", description: "is missing: send job or manifest" });
    }
    if (source.$case === "manifest") {
      const document = parseManifest(source.value);
      if (!document.ok) return document;
      const decoded = decodeTrainingJob(document.value, readModel);
      return decoded.ok ? decoded : invalid(...decoded.violations);
    }
    const name = source.value.metadata?.name ?? "";
    // A bad name is refused with everything else that is wrong, by the rules of manifests.
    const stored = isResourceName(name) ? await this.parts.store.get("TrainingJob", name) : undefined;
    const decoded = completeTrainingJob(source.value, readModel, stored?.spec);
    return decoded.ok ? decoded : invalid(...decoded.violations);
  }

  /** Undefined after a lost race. */
  private async applyOnce(
    wanted: TrainingJob,
    dryRun: boolean,
  ): Promise<Answer<rpc.JobServiceApplyResponse> | undefined> {
    const { store } = this.parts;
    const { name = "", labels = {}, annotations = {} } = wanted.metadata ?? {};
    const stored = await store.get("TrainingJob", name);
    if (stored === undefined) {
      const misfit = await this.checkBase(wanted);
      if (misfit !== undefined) return misfit;
      const status = TrainingJobStatus.fromPartial({ phase: "Pending" });
      const job: TrainingJob = { ...wanted, metadata: { ...newMeta(name, labels), annotations }, status };
      if (dryRun) return answer({ job, outcome: "created" });
      const created = await store.create("TrainingJob", job);
      return created.ok ? answer({ job: created.resource, outcome: "created" }) : undefined;
    }
    const change = changeOf(stored, wanted);
    if (change.type === "refused") return refuse("FAILED_PRECONDITION", change.message);
    if (change.type === "unchanged") return answer({ job: stored, outcome: "unchanged" });
    if (dryRun) return answer({ job: change.job, outcome: "configured" });
    const updated = await store.update("TrainingJob", change.job);
    return updated.ok ? answer({ job: updated.resource, outcome: "configured" }) : undefined;
  }

  /** Holds a new job against the stored model it names; one that is not there yet is waited for, and judged then. */
  private async checkBase(wanted: TrainingJob): Promise<Answer<never> | undefined> {
    const base = wanted.spec?.model?.base ?? "";
    const model = base === "" ? undefined : await this.parts.store.get("Model", base);
    const violations = model === undefined ? [] : checkAgainstModel(wanted, factsOf(configOf(model)));
    return violations.length === 0 ? undefined : invalid(...violations);
  }

  /** One job by name. */
  async get({ name }: rpc.JobServiceGetRequest): Promise<Answer<rpc.JobServiceGetResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const job = await this.parts.store.get("TrainingJob", name);
    return job === undefined ? noJob(name) : answer({ job });
  }

  /** A page of jobs in order of name. */
  async list(request: rpc.JobServiceListRequest): Promise<Answer<rpc.JobServiceListResponse>> {
    const { pageSize, pageToken, labelSelector } = request;
    const scope = `jobs ${JSON.stringify(Object.entries(labelSelector).sort())}`;
    const parsed = parsePage(pageSize, pageToken, scope, PAGES);
    if (!parsed.ok) return invalid(...parsed.violations);
    const { items, version } = await this.parts.store.list("TrainingJob", { labels: labelSelector });
    const page = cutPage(items, (job) => job.metadata?.name ?? "", parsed.page, scope);
    return answer({ jobs: page.items, nextPageToken: page.nextPageToken, resourceVersion: version });
  }

  /** What exists, then "synced", then changes, until the signal aborts. Resumes after a version. */
  watch(request: rpc.JobServiceWatchRequest, signal: AbortSignal): Answer<AsyncIterable<rpc.JobServiceWatchResponse>> {
    const bad = request.name === "" ? undefined : badName("name", request.name);
    if (bad !== undefined) return bad;
    if (request.resourceVersion !== "" && !/^\d{1,19}$/.test(request.resourceVersion)) {
      const description = "is not a version: send the resource_version of a list or of an event, or nothing";
      return invalid({ field: "resource_version", value: request.resourceVersion.slice(0, 64), description });
    }
    return answer(this.follow(request, signal));
  }

  private async *follow(
    { name, resourceVersion: after, labelSelector }: rpc.JobServiceWatchRequest,
    signal: AbortSignal,
  ): AsyncGenerator<rpc.JobServiceWatchResponse> {
    const only = name === "" ? {} : { name };
    const from = after === "" ? {} : { afterVersion: after };
    for await (const event of this.parts.store.watch("TrainingJob", { signal, ...only, ...from })) {
      const resourceVersion = event.version;
      if (event.type === "synced") yield { type: WatchEventType.SYNCED, job: undefined, resourceVersion };
      else if (event.type === "put") {
        if (isSelected(event.resource, labelSelector))
          yield { type: WatchEventType.PUT, job: event.resource, resourceVersion };
      } else {
        const job = TrainingJob.fromPartial({
          apiVersion: API_VERSION,
          kind: "TrainingJob",
          metadata: newMeta(event.name),
        });
        yield { type: WatchEventType.DELETE, job, resourceVersion };
      }
    }
  }

  /** Stops a job: no further rounds; what is committed to the round under way is folded if it is enough. Idempotent. */
  async cancel({ name }: rpc.JobServiceCancelRequest): Promise<Answer<rpc.JobServiceCancelResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const job = await this.parts.store.get("TrainingJob", name);
      if (job === undefined) return noJob(name);
      const status = job.status ?? TrainingJobStatus.fromPartial({});
      if (status.phase === "Cancelled") return answer({ job });
      if (FINISHED.has(status.phase)) {
        return refuse(
          "FAILED_PRECONDITION",
          `job "${name}" is ${status.phase.toLowerCase()} already; there is nothing to cancel`,
        );
      }
      const seen = { type: "Progressing", status: false, reason: "Cancelled", message: "cancelled on request" };
      const generation = job.metadata?.generation ?? 1;
      const conditions = setCondition(status.conditions, { ...seen, generation }, this.parts.clock.nowMs());
      const written = await this.parts.store.update("TrainingJob", {
        ...job,
        status: { ...status, phase: "Cancelled", conditions },
      });
      if (written.ok) return answer({ job: written.resource });
    }
    return lostRaces();
  }

  /** Removes a job that is not running, with its rounds, tallies, results and updates. Its model stays. */
  async delete({ name }: rpc.JobServiceDeleteRequest): Promise<Answer<rpc.JobServiceDeleteResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const { store, updates } = this.parts;
    // Before the job is looked at: what a job that is applied anew under its name brings lies behind.
    const { lastSeq } = await updates.usage();
    let meant: string | undefined;
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const job = await store.get("TrainingJob", name);
      if (job === undefined) return meant === undefined ? noJob(name) : answer({});
      meant ??= job.metadata?.uid ?? "";
      // Another call was quicker, and the name is used again.
      if (job.metadata?.uid !== meant) return answer({});
      const phase = job.status?.phase ?? "";
      if (!FINISHED.has(phase) && phase !== "Pending" && phase !== "") {
        return refuse("FAILED_PRECONDITION", `job "${name}" is ${phase.toLowerCase()}: cancel it first`);
      }
      const rounds = await this.roundsOf(name);
      const open = rounds.find((round) => !isFinal(round));
      if (open !== undefined) {
        return refuse(
          "FAILED_PRECONDITION",
          `round ${open.spec?.number ?? 0} of job "${name}" is still being closed: try again in a moment`,
        );
      }
      let isRemoved = true;
      for (const round of rounds) isRemoved &&= await this.removeRound(round, lastSeq);
      if (!isRemoved) continue;
      // Last, and only as it was seen: after a crash before this the same call finishes the work.
      const removed = await store.delete("TrainingJob", name, job.metadata.resourceVersion);
      if (removed.ok) return answer({});
    }
    return lostRaces();
  }

  /**
   * Removes a round with all that belongs to it, only as it is seen here.
   * @returns false if it changed meanwhile, or is another job's by now.
   */
  private async removeRound({ metadata }: Round, lastSeq: number): Promise<boolean> {
    const { store, updates } = this.parts;
    const name = metadata?.name ?? "";
    const [tally, result, shards] = await Promise.all([
      store.get("UpdateTally", name),
      store.get("RoundResult", name),
      // The aggregator's records of a fold whose clearing a crash cut off; what they staged it collects, as blobs of no use.
      store.list("FoldShard", { labels: { round: name } }),
    ]);
    // The round goes last, so while it is there what was read before is its own.
    const round = await store.get("Round", name);
    if (round?.metadata?.uid !== metadata?.uid) return round === undefined;
    await updates.purgeRound(name, lastSeq);
    const isGone = async (kind: Kind, of: { metadata: ObjectMeta | undefined } | undefined): Promise<boolean> => {
      if (of === undefined) return true;
      const removed = await store.delete(kind, of.metadata?.name ?? "", of.metadata?.resourceVersion);
      return removed.ok || removed.reason === "NotFound";
    };
    if (!(await isGone("UpdateTally", tally))) return false;
    for (const shard of shards.items) if (!(await isGone("FoldShard", shard))) return false;
    return (await isGone("RoundResult", result)) && (await isGone("Round", round));
  }

  /** Why the job is where it is. */
  async explain({ name }: rpc.JobServiceExplainRequest): Promise<Answer<rpc.JobServiceExplainResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const { store } = this.parts;
    const job = await store.get("TrainingJob", name);
    if (job === undefined) return noJob(name);
    const current = roundName(name, job.status?.currentRound ?? 0);
    const [round, tally] = await Promise.all([store.get("Round", current), store.get("UpdateTally", current)]);
    const own = ownRecord(round, tally);
    return answer({ job, round, tally: own, explanation: explain(job, round, own) });
  }

  /** A page of a job's rounds in order of number, with their results. */
  async listRounds(request: rpc.JobServiceListRoundsRequest): Promise<Answer<rpc.JobServiceListRoundsResponse>> {
    const { job, pageSize, pageToken } = request;
    const bad = badName("job", job);
    if (bad !== undefined) return bad;
    const scope = `rounds ${job}`;
    const parsed = parsePage(pageSize, pageToken, scope, PAGES);
    if (!parsed.ok) return invalid(...parsed.violations);
    if ((await this.parts.store.get("TrainingJob", job)) === undefined) return noJob(job);
    const inOrder = (round: Round): string => String(round.spec?.number ?? 0).padStart(7, "0");
    const rounds = (await this.roundsOf(job)).sort((a, b) => (inOrder(a) < inOrder(b) ? -1 : 1));
    const page = cutPage(rounds, inOrder, parsed.page, scope);
    const withResults = page.items.map(async (round) => ({
      round,
      result: ownRecord(round, await this.parts.store.get("RoundResult", round.metadata?.name ?? "")),
    }));
    return answer({ rounds: await Promise.all(withResults), nextPageToken: page.nextPageToken });
  }

  private async roundsOf(job: string): Promise<Round[]> {
    const { items } = await this.parts.store.list("Round", { prefix: `${job}-` });
    return items.filter((round) => round.spec?.job === job);
  }
}
