//! The command line: one call of the control socket for each command, and the host itself behind
//! `run` and `dev`.
//!
//! - [`args`]: the words of the command line
//! - [`exit`]: exit codes and what goes to standard error with them
//! - [`output`]: tables, times, sizes, colour
//! - [`operation`]: an operation shown while it runs
//! - one file for each family of commands

mod args;
mod audit;
mod availability;
mod build;
mod check;
mod config;
mod dashboard;
mod deploy;
mod dev;
mod diff;
mod doctor;
mod drain;
mod events;
mod exit;
mod history;
mod inspect;
mod live;
mod logs;
mod manual;
mod new;
mod node;
mod operation;
mod output;
mod remote;
mod run;
mod settings;
mod shadow;
mod shutdown;
mod state;
mod status;
mod tenants;
mod up;
mod wait;
mod work;

use std::process::ExitCode;

use clap::Parser;

use self::{
    args::{Args, Command},
    exit::Failure,
};
use crate::origin::origin;

/// Parses the command line of this process and does what it says.
///
/// Usage errors are told and end with 2, as the contract of the exit codes has it.
pub fn main() -> ExitCode {
    origin();
    let args = Args::parse();
    let global = args.global;
    let done = match args.command {
        Command::Run(args) => run::run(&global, args),
        Command::Dev(args) => dev::dev(&global, args),
        Command::New(args) => new::new(&global, &args),
        Command::Doctor(args) => client(doctor::doctor(&global, args)),
        Command::Check(args) => check::check(&global, &args),
        Command::Inspect(args) => inspect::inspect(&global, &args),
        Command::Deploy(args) => client(deploy::deploy(&global, args)),
        Command::Reload(args) => client(deploy::reload(&global, args)),
        Command::Promote(args) => client(deploy::promote(&global, args)),
        Command::Abort(args) => client(deploy::abort(&global, args)),
        Command::Canary { command } => client(deploy::canary(&global, command)),
        Command::Shadow(args) => client(shadow::shadow(&global, args)),
        Command::Stop(args) => client(availability::stop(&global, args)),
        Command::Start(args) => client(availability::start(&global, args)),
        Command::Restart(args) => client(availability::restart(&global, args)),
        Command::Pause(args) => client(availability::pause(&global, args)),
        Command::Resume(apps) => client(availability::resume(&global, apps)),
        Command::Rollback(args) => client(deploy::rollback(&global, args)),
        Command::Status(args) => client(status::status(&global, args)),
        Command::Dashboard(args) => client(dashboard::dashboard(&global, args)),
        Command::Wait(args) => client(wait::wait(&global, args)),
        Command::Up(args) => client(up::up(&global, args)),
        Command::Dial => remote::dial(&global),
        Command::Verify(args) => client(deploy::verify(&global, args)),
        Command::Diff(args) => client(diff::diff(&global, args)),
        Command::History(args) => client(history::history(&global, args)),
        Command::Audit(args) => client(audit::audit(&global, args)),
        Command::Events(args) => client(events::events(&global, args)),
        Command::Logs(args) => client(logs::logs(&global, args)),
        Command::State(args) => client(state::state(&global, args.command)),
        Command::Plan => client(config::plan(&global)),
        Command::ReloadConfig => client(config::reload(&global)),
        Command::Jobs(args) => client(work::jobs(&global, args)),
        Command::Schedules(args) => client(work::schedules(&global, args)),
        Command::Leases(args) => client(work::leases(&global, args)),
        Command::Drain(args) => client(drain::drain(&global, args)),
        Command::Tenants(args) => client(tenants::tenants(&global, args)),
        Command::Set(args) => client(settings::set(&global, args)),
        Command::Settings(args) => client(settings::settings(&global, args)),
        Command::Send(args) => client(settings::send(&global, args)),
        Command::Move(args) => client(tenants::move_on(&global, args)),
        Command::Cancel { id } => client(work::cancel(&global, &id)),
        Command::Config(command) => client(config::config(&global, command)),
        Command::DrainNode(args) => client(node::drain_node(&global, &args)),
        Command::Shutdown(args) => client(shutdown::shutdown(&global, args)),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(folder.as_deref()),
        Command::PreflightChild => return crate::preflight::child::main(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(&global),
    }
}

/// Runs a command that only talks: one thread is enough for it.
fn client(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("the command cannot start: {error}")))?
        .block_on(command)
}
