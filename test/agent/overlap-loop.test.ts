import test, { type ExecutionContext } from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { DataPolicy } from "#proto/shoal/v1/device.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { AgentParts } from "#agent/runtime/parts.js";
import { Sessions } from "#agent/train/sessions.js";
import { backend, commitsOf, createRig, until, type Rig } from "./support/loop-rig.js";
import { tinyAssignment, tinyModel, tinyTask } from "./support/tiny-model.js";

const half = Math.floor(tinyModel.weights.length / 2);
const fragments = [
  { ranges: [{ start: 0, length: half }] },
  { ranges: [{ start: half, length: tinyModel.weights.length - half }] },
];

const given = (number: number, overlapSteps: number, job = "job"): AssignedTask => {
  const place = { number, fragments, fragment: (number - 1) % 2, mixing: 0.5 };
  const task = tinyTask(`${job}-${number}`, {
    ...place,
    overlapSteps,
    referenceSteps: 6,
    stepOffset: 6 * (number - 1),
  });
  return { task, assignment: tinyAssignment(6, number), deadlineAtMs: 0 };
};

const aheadOf = ({ log }: Rig): unknown[] =>
  log.lines.filter(({ message }) => message.startsWith("worked ahead")).map(({ fields }) => fields["steps"]);

const committed = (rig: Rig, round: string): Promise<void> =>
  until(round, async () => (await commitsOf(rig, round)) === 1 && rig.plane.beats.at(-1)?.assignments.length === 0);

interface Course {
  /** Of the agent, between the rounds. */
  restart?: boolean;
  /** Of a chunk on its way. */
  slowMs?: number;
  /** What else is assigned between the rounds. */
  between?: AssignedTask;
  change?: Partial<AgentParts>;
}

/** Two rounds of a job; what the second one sends, and how many steps were taken ahead of which rounds. */
async function twoRounds(
  t: ExecutionContext,
  overlapSteps: number,
  { restart = false, slowMs = 0, between, change = {} }: Course = {},
): Promise<{ sent: UpdateManifest | undefined; ahead: unknown[] }> {
  const rig = await createRig(t);
  const append = rig.plane.uplink.appendChunk.bind(rig.plane.uplink);
  rig.plane.uplink.appendChunk = async (...chunk) => {
    await new Promise((resolve) => setTimeout(resolve, slowMs));
    return append(...chunk);
  };
  let agent = await rig.start(change);
  rig.plane.give([given(1, overlapSteps)]);
  await committed(rig, "job-1");
  if (restart) {
    await agent.stop();
    agent = await rig.start(change);
  }
  if (between !== undefined) {
    rig.plane.give([between]);
    await committed(rig, between.task?.round ?? "");
  }
  rig.plane.give([given(2, overlapSteps)]);
  await committed(rig, "job-2");
  await agent.stop();
  return { sent: (await rig.plane.updates.commits("job-2"))[0]?.manifest, ahead: aheadOf(rig) };
}

test.serial(
  "steps ahead are part of the next round's update, with the same bits however long the link takes",
  async (t) => {
    const none = await twoRounds(t, 0);
    const fast = await twoRounds(t, 3);
    const slow = await twoRounds(t, 3, { slowMs: 300 });
    const throttled = await twoRounds(t, 3, { change: { throttle: 0.2 } });
    t.deepEqual([none.ahead, fast.ahead[0], slow.ahead[0], throttled.ahead[0]], [[], 3, 3, 3]);
    for (const { sent } of [none, fast, slow, throttled]) t.like(sent, { localSteps: 6, tokens: 96 });
    t.is(slow.sent?.digest, fast.sent?.digest);
    t.is(throttled.sent?.digest, fast.sent?.digest);
    t.not(fast.sent?.digest, none.sent?.digest);
  },
);

test.serial("steps ahead that are lost do no harm: the round begins as if there had been none", async (t) => {
  const none = await twoRounds(t, 0);
  const restarted = await twoRounds(t, 3, { restart: true });
  t.is(restarted.sent?.digest, none.sent?.digest);
  const other = await twoRounds(t, 3, { between: given(1, 0, "other") });
  t.is(other.sent?.digest, none.sent?.digest);
});

test.serial("steps ahead of one job are not taken for another's of the same number", async (t) => {
  const digests: unknown[] = [];
  for (const between of [[], [given(1, 3)]]) {
    const rig = await createRig(t);
    const agent = await rig.start();
    for (const task of [given(1, 0, "other"), ...between, given(2, 0, "other")]) {
      rig.plane.give([task]);
      await committed(rig, task.task?.round ?? "");
      await until(
        "calm",
        () => rig.log.lines.some(({ message }) => message.startsWith("worked ahead")) || task.task?.job === "other",
      );
    }
    await agent.stop();
    t.is(aheadOf(rig).length, between.length);
    digests.push((await rig.plane.updates.commits("other-2"))[0]?.manifest?.digest);
  }
  t.is(digests[0], digests[1]);
});

test.serial("an evaluation in between leaves steps ahead as they are, and a policy ends them", async (t) => {
  const between = given(9, 0);
  const assignment = { ...tinyAssignment(0), trainGraph: undefined };
  const evaluated = await twoRounds(t, 3, { between: { ...between, assignment } });
  t.is(evaluated.sent?.digest, (await twoRounds(t, 3)).sent?.digest);

  const rig = await createRig(t);
  const agent = await rig.start({ policy: DataPolicy.fromPartial({ maxRoundsPerDay: 2 }) });
  for (const number of [1, 2]) {
    rig.plane.give([given(number, 3)]);
    await committed(rig, `job-${number}`);
  }
  await agent.stop();
  t.deepEqual(aheadOf(rig), [3], "after the day's last round there is nothing to work ahead for");
});

test.serial("a round that waited for steps ahead does not begin in hours that its policy does not allow", async (t) => {
  const rig = await createRig(t);
  let steps = 0;
  let open: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => (open = resolve));
  const gated = {
    ...backend,
    eval: backend.eval.bind(backend),
    train: async (...graph: Parameters<typeof backend.train>) => {
      const session = await backend.train(...graph);
      const step = session.step.bind(session);
      session.step = async (...batch) => {
        steps += 1;
        // The first of the steps ahead of round 2.
        if (steps === 7) await gate;
        return step(...batch);
      };
      return session;
    },
  };
  const sessions = new Sessions(gated);
  t.teardown(() => sessions.close());
  const real = new SystemClock();
  let nowMs = Date.UTC(2026, 0, 2, 10, 0);
  const clock = {
    nowMs: () => nowMs,
    monotonicMs: () => real.monotonicMs(),
    sleep: (...pause: Parameters<SystemClock["sleep"]>) => real.sleep(...pause),
  };
  const policy = DataPolicy.fromPartial({ startMinute: 9 * 60, endMinute: 11 * 60 });
  const agent = await rig.start({ sessions, clock, policy });
  const phaseOf = (round: string): string | undefined =>
    rig.plane.beats.at(-1)?.assignments.find((assignment) => assignment.round === round)?.phase;
  rig.plane.give([given(1, 3)]);
  await committed(rig, "job-1");
  rig.plane.give([given(2, 3)]);
  await until("the round waits for the steps ahead", () => phaseOf("job-2") === "Training");
  t.is(steps, 7);
  nowMs = Date.UTC(2026, 0, 2, 12, 0);
  open();
  await until("the round is refused", () => phaseOf("job-2") === "Refused");
  await agent.stop();
  t.is(steps, 7);
  t.is(await commitsOf(rig, "job-2"), 0);
});
