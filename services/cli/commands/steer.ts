import { Device } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { call } from "../calls.js";
import { writeJson } from "../io.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

/** One line for people or one value for programs. */
function tell(shell: Shell, options: RemoteOptions, line: string, json: unknown): void {
  if (options.json === true) writeJson(shell.io, json);
  else shell.io.out(`${line}\n`);
}

function jobSteering(program: Parameters<CommandGroup>[0], remove: Parameters<CommandGroup>[0], shell: Shell): void {
  takesRemote(program.command("cancel <job>").description("stop a job after what is already committed")).action(
    (name: string, options: RemoteOptions) =>
      withClients(shell, options, async ({ jobs }) => {
        const { job } = await call(jobs.cancel.bind(jobs), { name });
        tell(shell, options, `job/${name} cancelled`, job === undefined ? null : TrainingJob.toJSON(job));
      }),
  );
  takesRemote(remove.command("job <name>").description("a job that does not run, with its rounds")).action(
    (name: string, options: RemoteOptions) =>
      withClients(shell, options, async ({ jobs }) => {
        await call(jobs.delete.bind(jobs), { name });
        tell(shell, options, `job/${name} deleted`, { deleted: name });
      }),
  );
}

/** cancel, delete, cordon, uncordon, drain. */
export const steerCommands: CommandGroup = (program, shell) => {
  const remove = program.command("delete").description("remove a resource");
  jobSteering(program, remove, shell);
  takesRemote(remove.command("device <name>").description("a device; its credential is revoked")).action(
    (name: string, options: RemoteOptions) =>
      withClients(shell, options, async ({ fleet }) => {
        await call(fleet.deleteDevice.bind(fleet), { name });
        tell(shell, options, `device/${name} deleted`, { deleted: name });
      }),
  );
  const cordon = (verb: "cordon" | "uncordon", description: string): void => {
    takesRemote(program.command(`${verb} <device>`).description(description)).action(
      (name: string, options: RemoteOptions) =>
        withClients(shell, options, async ({ fleet }) => {
          const request = { name, uncordon: verb === "uncordon" };
          const { device } = await call(fleet.cordonDevice.bind(fleet), request);
          tell(shell, options, `device/${name} ${verb}ed`, device === undefined ? null : Device.toJSON(device));
        }),
    );
  };
  cordon("cordon", "give a device no new assignments");
  cordon("uncordon", "give a device assignments again");
  takesRemote(program.command("drain <device>").description("cordon a device and withdraw what it runs")).action(
    (name: string, options: RemoteOptions) =>
      withClients(shell, options, async ({ fleet }) => {
        const { device } = await call(fleet.drainDevice.bind(fleet), { name });
        tell(shell, options, `device/${name} draining`, device === undefined ? null : Device.toJSON(device));
      }),
  );
};
