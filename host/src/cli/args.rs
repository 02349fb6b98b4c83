//! The words of the command line.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};

use handover_api::{AppName, Label, LogLevel, Percent, Steps};

use super::{dev::Variable, remote::RemoteHost};
use crate::{
    config::{NamedAddress, RequestKey},
    net::ListenerKey,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure
  2  usage: the command line makes no sense
  3  no host answers at the control socket
  4  the artifact was rejected, the old code is still live
  5  the health check failed, the old code is still live
  6  rolled back after it had been live
  7  done, but the old code had to be ended at its drain deadline
  8  another operation of this app is under way
  9  denied
130  interrupted with Ctrl-C; what the host has begun, it finishes

Examples:
  handover new hello && handover dev hello     make a plugin and work on it
  handover run --plugins ./plugins             serve and swap what is put there
  handover deploy target/release/libhello.so   swap by hand, wait for the end
  handover status -w                           watch it";

/// Serves apps from plugins and swaps them while they serve: no request is lost.
#[derive(Debug, Parser)]
#[command(
    name = "handover",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "`handover --help` also lists the exit codes and examples; `handover COMMAND --help` explains one command.",
    after_long_help = EXIT_CODES
)]
pub(super) struct Args {
    /// What every command takes.
    #[command(flatten)]
    pub(super) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Global {
    /// The control socket of the host [default: ./.handover/control.sock, else
    /// /run/handover/control.sock]
    #[arg(
        long,
        global = true,
        value_name = "SOCK",
        env = "HANDOVER_CONTROL",
        hide_env_values = true
    )]
    pub(super) control: Option<PathBuf>,
    /// The host of another machine, reached by ssh; --control is the path there
    #[arg(
        long,
        global = true,
        value_name = "ssh://[USER@]HOST",
        env = "HANDOVER_HOST",
        hide_env_values = true,
        help_heading = "Options of every command"
    )]
    pub(super) host: Option<RemoteHost>,
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub(super) json: bool,
    /// Print without colour, as the environment variable NO_COLOR does
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub(super) no_color: bool,
}

impl Global {
    /// Where the host is called: where it was said, else in this folder, else that of the system.
    pub(super) fn control(&self) -> PathBuf {
        const HERE: &str = "./.handover/control.sock";
        const OF_SYSTEM: &str = "/run/handover/control.sock";
        let usual = || {
            let is_of_system = !Path::new(HERE).exists() && Path::new(OF_SYSTEM).exists();
            PathBuf::from(if is_of_system { OF_SYSTEM } else { HERE })
        };
        self.control.clone().unwrap_or_else(usual)
    }
}

/// `handover jobs`
#[derive(Debug, clap::Args)]
pub(super) struct JobsArgs {
    /// Only those of this app
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Only those in this state: waiting, running, done, dead or cancelled
    #[arg(long, value_name = "STATE", value_parser = ["waiting", "running", "done", "dead", "cancelled"], hide_possible_values = true)]
    pub(super) state: Option<String>,
    /// Only those of this tenant
    #[arg(long, value_name = "TENANT")]
    pub(super) tenant: Option<String>,
    /// At most so many [default: 100]
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// What to do with one.
    #[command(subcommand)]
    pub(super) command: Option<JobsCommand>,
}

/// What to do with a job.
#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// Show all that is known of a job
    Show {
        /// Its ID
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Cancel a job
    Cancel {
        /// Its ID
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Let a job that failed or was cancelled run again at once
    Retry {
        /// Its ID
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What is shown of one app, or of all.
#[derive(Debug, clap::Args)]
pub(super) struct OfApp {
    /// Only those of this app
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration file, and the files of apps.d beside it, without a host
    Check {
        /// The file
        #[arg(value_name = "FILE", default_value = "handover.toml")]
        file: PathBuf,
    },
    /// Print every key with its value, defaults included
    Show {
        /// The file [default: what the running host works with]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the host: serve plugins, swap them when told to
    #[command(after_help = "\
Without --config, the first plugin put into the drop folder answers at /, further ones at /NAME,
and answers carry the headers handover-version and handover-generation. Flags overrule the file.
SIGTERM or Ctrl-C drains what is in flight and ends; SIGHUP scans the drop folder again.
A small parent process holds the listening socket and starts the host again when it crashes; there is none
with --no-supervisor, nor where systemd passes the sockets (LISTEN_FDS).

Examples:
  handover run
  handover run --config handover.toml --listen 0.0.0.0:80")]
    Run(Run),
    /// Build a plugin crate, serve it, swap it on every change
    #[command(after_help = "\
While the code does not compile, the errors are shown and the last good version goes on serving.
The app has the settings of handover.toml and the variables of .env beside the crate; a change of them swaps too.

Examples:
  handover dev .
  handover dev shop --listen localhost:3000 --release
  handover dev shop --env DATABASE_URL=sqlite:dev.db")]
    Dev(Dev),
    /// Make a plugin crate that builds, serves and passes its test
    #[command(after_help = "\
Examples:
  handover new hello
  handover new services/shop")]
    New(New),
    /// Say what of this machine would bite a host
    #[command(after_help = "\
Limits, folders, addresses, the control socket and whatever else a host needs, as the user sees them
who calls, each with what to do. A host that runs is asked, too. It ends with 1 if there is a problem.

Examples:
  handover doctor
  sudo -u handover handover doctor --config /etc/handover/handover.toml")]
    Doctor(Doctor),
    /// Check a plugin file as a deploy would, without a host
    #[command(after_help = "\
The plugin's constructor runs in a child process, and with --config the smoke requests of its app.
It ends with 4 if the host would reject the file, and with 5 if a smoke request fails.

Example:
  handover check target/release/libshop.so --config handover.toml")]
    Check(Check),
    /// Show what a plugin file says of itself, without loading it
    #[command(after_help = "\
Example:
  handover inspect target/release/libshop.so")]
    Inspect(Inspect),
    /// Swap in a plugin file, and wait until the old code has left
    #[command(after_help = "\
Ctrl-C stops the watching, not the deploy: what the host has begun, it finishes. With --queue it waits its turn
behind what is under way for the app, and Ctrl-C meanwhile takes it out of the queue, unless --detach was given.

Examples:
  handover deploy target/release/libshop.so
  handover deploy libshop.so --app shop-eu --timeout 60s
  handover deploy libshop.so --signature keys/libshop.so.minisig
  handover deploy libshop.so --queue --timeout 5m
  handover deploy libshop.so --detach
  handover deploy libshop.so --stage --ttl 1h && handover promote shop
  handover deploy libshop.so --label fix-12 --ttl 2d
  handover deploy libshop.so --canary 5% --steps 5%,25%,100% --bake 10m --sticky cookie:session
  handover deploy libshop.so --shadow 10% --ttl 1h && handover shadow shop")]
    Deploy(Deploy),
    /// Activate what is staged, and scan the drop folder again
    #[command(after_help = "\
Files that failed before are tried again.

Examples:
  handover reload
  handover reload shop")]
    Reload(Reload),
    /// Show how the configuration differs from what the host works with
    #[command(after_help = "\
Changes nothing. A change takes effect with `reload-config`; some keys hold for the next generation of their app, or
for the next start of the host, and say so.

Example:
  handover plan && handover reload-config")]
    Plan,
    /// Read the configuration again, and put what has changed into effect
    #[command(after_help = "\
All of it or nothing: an error leaves everything as it was. No connection is dropped.

Example:
  handover reload-config")]
    ReloadConfig,
    /// Show the durable jobs of apps, cancel them, try them again
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  handover jobs shop --state dead
  handover jobs show 01hf3k8m2qz7r
  handover jobs retry 01hf3k8m2qz7r"
    )]
    Jobs(JobsArgs),
    /// Show the schedules of what is live, and when each is due
    #[command(after_help = "\
Example:
  handover schedules shop")]
    Schedules(OfApp),
    /// Show who holds which lease, and who waits for it
    #[command(after_help = "\
Example:
  handover leases shop")]
    Leases(OfApp),
    /// Show who holds generations that were replaced, and wait until they have ended
    #[command(after_help = "\
`handover cancel ID` ends a request, a stream or a connection, as the drain deadline would. With --wait the command
ends with 7 when something had to be cut.

Examples:
  handover drain
  handover drain shop 17 --wait")]
    Drain(Drain),
    /// Show the tenants that stay on a version that was replaced, and what holds each
    #[command(after_help = "\
Example:
  handover tenants shop")]
    Tenants(OfApp),
    /// Move a tenant to the live version, whatever it has on the one before
    #[command(after_help = "\
What it has there goes on, or with --now is ended as the drain deadline would.

Example:
  handover move shop acme --now")]
    Move(Move),
    /// Change a setting of an app while it runs, or take it away
    #[command(after_help = "\
VALUE is JSON, and else a text. The live version checks it first: what it refuses is not changed. All versions have it
at once, and it outlives deploys and restarts.

Examples:
  handover set shop theme dark
  handover set shop rate 250
  handover set shop countries '[\"de\",\"fr\"]' --by ann
  handover set shop theme --unset")]
    Set(Set),
    /// Show the settings of an app, and who changed them
    #[command(after_help = "\
Examples:
  handover settings shop
  handover settings shop --history")]
    Settings(Settings),
    /// Send a message to every version of an app that runs, and print what each answers
    #[command(after_help = "\
What a message means is the app's own affair (`on_message`). It ends with 1 when a version did not answer.

Examples:
  handover send shop flush
  handover send shop '{\"log\": \"debug\"}' --timeout 5s")]
    Send(Send),
    /// Cancel a job, a request or a stream, or take a lease away
    #[command(after_help = "\
Examples:
  handover cancel 01hf3k8m2qz7r
  handover cancel lease:shop:mail-poller")]
    Cancel {
        /// What `handover jobs`, `handover leases` or `handover drain` shows as its ID
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Make live what `deploy --stage`, `--label`, `--canary` or `--shadow` has brought up
    #[command(after_help = "\
Nothing is loaded: new requests go to it from one instant to the next.

Examples:
  handover promote shop
  handover promote shop --label fix-12")]
    Promote(Promote),
    /// Have the trial of a version stand still, or go on
    #[command(after_help = "\
`handover status` shows where a trial is, and what its figures say; `promote` and `abort` end it in any state.

Examples:
  handover canary pause shop
  handover canary resume shop")]
    Canary {
        /// What becomes of it
        #[command(subcommand)]
        command: CanaryCommand,
    },
    /// Show how a shadow's answers differ from those that clients were given
    #[command(after_help = "\
Volatile header fields are left out (date, set-cookie, x-request-id, …), and what [app.NAME.shadow] names.

Examples:
  handover deploy libshop.so --shadow 10%
  handover shadow shop")]
    Shadow(OfApp),
    /// End what `deploy --stage`, `--label`, `--canary` or `--shadow` has brought up
    #[command(after_help = "\
What is live is not touched, and what the other has in flight it finishes.

Examples:
  handover abort shop
  handover abort shop --label fix-12")]
    Abort(Labelled),
    /// End what runs of apps, and keep it so over restarts of the host
    #[command(after_help = "\
What is in flight ends as in a drain. Clients get 503 with the message; one that begins with `<` is HTML. A deploy
meanwhile is checked, and waits for the start.

Examples:
  handover stop shop --message 'Back at nine.'
  handover stop shop --page maintenance.html
  handover stop --all")]
    Stop(Stop),
    /// Make live what was live when apps were stopped, or what was deployed since
    #[command(after_help = "\
Examples:
  handover start shop
  handover start --all")]
    Start(Operate),
    /// Replace what is live by a new generation of the same artifact
    #[command(after_help = "\
As a deploy does it: the new one comes up beside the old one, and nothing is lost.

Examples:
  handover restart shop
  handover restart --all")]
    Restart(Operate),
    /// Have the requests of apps wait, until `resume`
    #[command(after_help = "\
No request fails meanwhile that waits for less than --max-wait; those beyond get 503.

Example:
  handover pause shop --max-wait 1m && ./migrate && handover resume shop")]
    Pause(Pause),
    /// Let the requests of paused apps go on
    #[command(after_help = "\
Example:
  handover resume shop")]
    Resume(Apps),
    /// Go back to what was live before, or to something older
    #[command(after_help = "\
`handover history` lists what there was.

Examples:
  handover rollback
  handover rollback shop --to 1.4.2
  handover rollback shop --to 17")]
    Rollback(Rollback),
    /// Show the apps, their generations and what is in flight
    #[command(after_help = "\
With -w: ↑ and ↓ scroll, q ends it. Where there is no terminal the lines come every two seconds.

Examples:
  handover status
  handover status shop -w
  handover status --json | jq '.apps[].active.version'")]
    Status(Status),
    /// Print a link to the page that shows the same in a browser
    #[command(after_help = "\
The link is good once, for five minutes, and the page has your rights. It is at dashboard.listen, else at a free port
of 127.0.0.1. From another machine: ssh -L PORT:127.0.0.1:PORT HOST.

Examples:
  handover dashboard
  handover dashboard --open")]
    Dashboard(Dashboard),
    /// Show what was deployed, and how it ended
    #[command(after_help = "\
Example:
  handover history shop")]
    History(History),
    /// Show who asked the host for which change, and how it ended
    #[command(after_help = "\
What came over the control socket and the dashboard, by files in the drop folders, and by signals; over restarts of the
host, too. Values and artifacts are not in it.

Examples:
  handover audit
  handover audit --app shop --since 2h
  handover audit --since 2026-11-28T08:00:00Z -n 1000 --json")]
    Audit(Audit),
    /// Compare what is live with a boot from nothing
    #[command(after_help = "\
The child has the settings that a restart would give, and a copy of the app's state. Its answers to
the smoke requests are compared with those of the live version: it ends with 5 if they differ, or if
the version was started with other settings, and with 4 if it does not start.

Example:
  handover verify shop")]
    Verify(OfApp),
    /// Wait until an operation has ended, and end as it did
    #[command(after_help = "\
Example:
  handover wait op-17 --timeout 5m")]
    Wait(WaitFor),
    /// Have an app run: start a host if none does, and deploy
    #[command(after_help = "\
A host that is started goes on when this command has ended, with its log beside the control socket.
With --or-force an app whose new version cannot be brought up beside the old one is stopped first: it
answers nothing meanwhile. If the new version does not start then, the old one is live again, and the
exit code is 6.

Examples:
  handover up target/release/libshop.so
  handover up . --message \"new prices\"
  handover up libshop.so --or-force")]
    Up(Up),
    /// Connect standard input and output to the control socket: the other end of --host
    #[command(after_help = "\
Example:
  ssh box handover dial")]
    Dial,
    /// Show how two versions of an app differ
    #[command(after_help = "\
What their files say: version, size, commit, build, jobs, schedules, and the packages that they were
built from where `cargo auditable build` has built both.

Examples:
  handover diff previous
  handover diff 1.4.2 1.5.0 --app shop
  handover diff live target/release/libshop.so")]
    Diff(Diff),
    /// Show what happened: cutovers, drains, panics, refusals
    #[command(after_help = "\
Examples:
  handover events
  handover events -f --json")]
    Events(Events),
    /// Show the last records of the host's log
    #[command(after_help = "\
The host keeps the last 2 MiB of them in memory, of what its log.level lets through; they begin
anew with each run of it. With -f the command goes on over restarts of the host.

Examples:
  handover logs -f
  handover logs --app shop --level warn
  handover logs --app shop --generation 7 --lines 100 --json")]
    Logs(Logs),
    /// Read and change what an app keeps in the host, back it up and restore it
    #[command(after_help = "\
A namespace is `default` unless named; `memory:NAME` is one that is kept in memory only.
Apps keep JSON: `put shop title '\"Corner shop\"'`.

Examples:
  handover state ls shop user/
  handover state get shop user/7
  handover state put shop greeting '\"hello\"' --ttl 1h
  handover state export shop > shop.jsonl
  handover state backup shop shop.backup && handover state verify shop shop.backup
  handover state restore shop shop.backup")]
    State(State),
    /// Check the configuration, or show every key with its value
    #[command(
        subcommand,
        after_help = "\
An error says file, line and key, and ends with 1.

Examples:
  handover config check /etc/handover/handover.toml
  handover config show handover.toml
  handover config show"
    )]
    Config(ConfigCommand),
    /// Tell balancers to send nothing more here, while what comes is still served
    #[command(after_help = "\
/readyz answers 503 until --undo, or until the host is started again; nothing is closed or refused.
With --wait it ends when nothing is under way and nothing has come for two seconds, or with 1 when the time
is over. Give balancers more than their own interval: they notice when they ask the next time.

Examples:
  handover drain-node --wait 60s && handover shutdown
  handover drain-node --undo")]
    DrainNode(DrainNode),
    /// End the host once what is in flight is done
    #[command(after_help = "\
Examples:
  handover shutdown
  handover shutdown --now")]
    Shutdown(Shutdown),
    /// Print the completions of a shell
    #[command(after_help = "\
Examples:
  handover completions bash > /etc/bash_completion.d/handover
  handover completions zsh > ~/.zfunc/_handover
  handover completions fish > ~/.config/fish/completions/handover.fish")]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write that of each command into a folder
    #[command(after_help = "\
Examples:
  handover man | man -l -
  handover man /usr/local/share/man/man1")]
    Man {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// The other side of preflight.
    #[command(name = crate::preflight::CHILD, hide = true)]
    PreflightChild,
}

/// `handover run`
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address to serve at [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// The drop folder: plugin files put there are deployed [default: ./plugins]
    #[arg(long, value_name = "DIR")]
    pub(super) plugins: Option<PathBuf>,
    /// Where the host keeps artifacts and state [default: ./.handover]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Serve from this very process: when it crashes, nothing starts it again
    #[arg(long, conflicts_with = "supervised")]
    pub(super) no_supervisor: bool,
    /// What a supervisor says to its child.
    #[command(flatten)]
    pub(super) child: Child,
    /// Accept a configuration file, drop folders and a state directory that others may write
    #[arg(long)]
    pub(super) insecure_paths: bool,
}

/// What the supervisor of `run` and `dev` says to the host that it starts, which is this program
/// with the same arguments and these.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Child {
    /// The process that supervises this one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(super) supervised: Option<u32>,
    /// The number of the file of that supervisor which keeps what the disk has no room for.
    #[arg(long, hide = true, requires = "supervised")]
    pub(super) spill: Option<i32>,
    /// How the host before this one crashed.
    #[arg(long, value_name = "HOW", hide = true)]
    pub(super) crashed: Option<String>,
    /// Which process that was.
    #[arg(long, value_name = "PID", hide = true)]
    pub(super) crashed_pid: Option<u32>,
    /// What it said of it.
    #[arg(long, value_name = "LINE", hide = true, allow_hyphen_values = true)]
    pub(super) last_words: Option<String>,
    /// The configuration that took effect last, for the time after a crash.
    #[arg(long, value_name = "FILE", hide = true, requires = "crashed")]
    pub(super) kept_config: Option<PathBuf>,
    /// Which listener each socket is that it is started with, in the order of the descriptors.
    #[arg(
        long = "socket",
        value_name = "KEY",
        hide = true,
        requires = "supervised"
    )]
    pub(super) sockets: Vec<ListenerKey>,
}

/// `handover dev`
#[derive(Debug, clap::Args)]
pub(super) struct Dev {
    /// The folder of the plugin crate
    #[arg(value_name = "CRATE_DIR", default_value = ".")]
    pub(super) folder: PathBuf,
    /// The address to serve at, whose host may be a name: localhost:9000 [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<NamedAddress>,
    /// The configuration file, of which [app.NAME] and [dev] count [default: handover.toml beside
    /// the crate, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// A variable for the app, beside those of the file .env beside the crate; without a value, the
    /// one that it has here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<Variable>,
    /// Serve by https, with a certificate of its own that browsers have to be told to accept
    #[arg(long)]
    pub(super) tls: bool,
    /// Build with optimisations
    #[arg(short, long)]
    pub(super) release: bool,
    /// Leave pages as the app writes them: without the script that loads them anew after a swap
    #[arg(long)]
    pub(super) no_reload: bool,
    /// What a supervisor says to its child.
    #[command(flatten)]
    pub(super) child: Child,
    /// Features of the crate to switch on, as cargo takes them
    #[arg(short = 'F', long, value_name = "FEATURES")]
    pub(super) features: Vec<String>,
    /// The package, where the folder is a workspace of several
    #[arg(short, long, value_name = "NAME")]
    pub(super) package: Option<String>,
}

/// `handover new`
#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// The folder to make; its last part names the crate and the app
    #[arg(value_name = "NAME")]
    pub(super) path: PathBuf,
}

/// `handover doctor`
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// The configuration file of the host [default: none, as for `handover run`]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// `handover check`
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The plugin file
    #[arg(value_name = "FILE.so")]
    pub(super) file: PathBuf,
    /// The app to check it for [default: the one its manifest names]
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// The configuration file with the check settings of the app, and the keys that must have
    /// signed it
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Its signature, made with minisign [default: FILE.so.minisig, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(super) signature: Option<PathBuf>,
    /// A backup of the state (`handover state backup`): its migrations are tried on that
    #[arg(long, value_name = "BACKUP")]
    pub(super) migrate: Option<PathBuf>,
}

/// `handover inspect`
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The plugin file
    #[arg(value_name = "FILE.so")]
    pub(super) file: PathBuf,
}

/// `handover wait`
#[derive(Debug, clap::Args)]
pub(super) struct WaitFor {
    /// The operation, as `deploy --detach` names it
    #[arg(value_name = "OP")]
    pub(super) operation: String,
    /// End with 1 when it goes on for longer
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration)]
    pub(super) timeout: Option<Duration>,
    /// End with 7 also when endless streams (events, gRPC, WebSockets) had to be ended at the drain
    /// deadline
    #[arg(long)]
    pub(super) strict_drain: bool,
}

/// `handover up`
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    /// The plugin file, or the folder of its crate, which is built then
    #[arg(value_name = "FILE.so|CRATE")]
    pub(super) what: PathBuf,
    /// Deploy to this app instead of the one that the manifest names
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// The configuration of a host that has to be started [default: ./handover.toml, if there]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address that a host serves at that has to be started [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// Where it cannot be brought up beside what is live: stop the app, then start the new version
    #[arg(long)]
    pub(super) or_force: bool,
    /// Do it once, however often it is asked for with this key
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
    #[command(flatten)]
    pub(super) why: Why,
}

/// `handover diff`
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// A plugin file, or a label, generation, version or SHA-256 that the host knows
    #[arg(value_name = "A")]
    pub(super) a: String,
    /// The same
    #[arg(value_name = "B", default_value = "live")]
    pub(super) b: String,
    /// The app; needed when the host has several
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
}

/// `handover deploy`
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("beside").args(["stage", "label", "shadow"])))]
pub(super) struct Deploy {
    /// The plugin file
    #[arg(value_name = "FILE.so")]
    pub(super) file: PathBuf,
    /// The app to deploy it to [default: the one its manifest names]
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Its signature, made with minisign [default: FILE.so.minisig, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(super) signature: Option<PathBuf>,
    /// Give up when it is not live by then, e.g. 60s; the old code stays live
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration)]
    pub(super) timeout: Option<Duration>,
    /// Bring it up beside what is live, under the label `next`, until `promote` or `abort`
    #[arg(long)]
    pub(super) stage: bool,
    /// The same under this label: as many as there are labels are up at a time
    #[arg(long, value_name = "LABEL")]
    pub(super) label: Option<Label>,
    /// End it by itself after this time, e.g. 2h
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration, requires = "beside")]
    pub(super) ttl: Option<Duration>,
    /// Give it this share of the requests, e.g. 5%, and promote it when its figures are as good as
    /// those of what is live; end it with 6 when they are not
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["stage", "label"])]
    pub(super) canary: Option<Percent>,
    /// Give it copies of this share of the reading requests, and compare what it answers: clients
    /// get nothing of it; the label is `shadow`
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["stage", "label", "canary"])]
    pub(super) shadow: Option<Percent>,
    /// The shares it gets one after the other, e.g. 5%,25%,100% [default: --canary, and what
    /// app.NAME.canary has beyond it]
    #[arg(long, value_name = "PERCENT,…", requires = "canary")]
    pub(super) steps: Option<Steps>,
    /// How long each share lasts [default: app.NAME.canary.bake, 10m]
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration, requires = "canary")]
    pub(super) bake: Option<Duration>,
    /// What stays on its side while the share grows: address, host, path:N, header:NAME or
    /// cookie:NAME [default: app.NAME.canary.sticky, else each request is left to chance]
    #[arg(long, value_name = "KEY", requires = "canary")]
    pub(super) sticky: Option<RequestKey>,
    /// Deploy it though it has no handler for jobs that wait: they wait for a version that has one
    #[arg(long)]
    pub(super) orphan_jobs: bool,
    /// Let it go live in a freeze too
    #[arg(long)]
    pub(super) override_freeze: bool,
    /// Do it once, however often it is asked for with this key
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
    #[command(flatten)]
    pub(super) why: Why,
    /// Wait for what is under way for the app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
    /// End with 7 also when endless streams (events, gRPC, WebSockets) had to be ended at the drain
    /// deadline
    #[arg(long, conflicts_with = "detach")]
    pub(super) strict_drain: bool,
    /// Return as soon as the host has accepted it
    #[arg(long)]
    pub(super) detach: bool,
}

/// `handover reload`
#[derive(Debug, clap::Args)]
pub(super) struct Reload {
    /// The app [default: all]
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Wait for what is under way for the app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
}

/// `handover promote` and `handover abort`
#[derive(Debug, clap::Args)]
pub(super) struct Labelled {
    /// The app; needed when the host has several
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// The label [default: canary or shadow while there is one, else next]
    #[arg(long, value_name = "LABEL")]
    pub(super) label: Option<Label>,
    #[command(flatten)]
    pub(super) why: Why,
    /// Wait for what is under way for the app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
}

/// `handover promote`
#[derive(Debug, clap::Args)]
pub(super) struct Promote {
    #[command(flatten)]
    pub(super) what: Labelled,
    /// Let it go live in a freeze too
    #[arg(long)]
    pub(super) override_freeze: bool,
    /// Promote it though it has no handler for jobs that wait: they wait for a version that has one
    #[arg(long)]
    pub(super) orphan_jobs: bool,
}

/// What is about some apps.
#[derive(Debug, clap::Args)]
pub(super) struct Apps {
    /// The apps; needed when the host has several
    #[arg(value_name = "APP")]
    pub(super) names: Vec<AppName>,
    /// All of them
    #[arg(long, conflicts_with = "names")]
    pub(super) all: bool,
}

/// `handover stop`
#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    #[command(flatten)]
    pub(super) apps: Apps,
    /// What clients are told meanwhile
    #[arg(long, value_name = "TEXT")]
    pub(super) message: Option<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE", conflicts_with = "message")]
    pub(super) page: Option<PathBuf>,
    /// Wait for what is under way for an app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
}

/// `handover start` and `handover restart`
#[derive(Debug, clap::Args)]
pub(super) struct Operate {
    #[command(flatten)]
    pub(super) apps: Apps,
    /// Wait for what is under way for an app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
}

/// `handover pause`
#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    #[command(flatten)]
    pub(super) apps: Apps,
    /// How long a request waits at the longest [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration)]
    pub(super) max_wait: Option<Duration>,
}

/// `handover move`
#[derive(Debug, clap::Args)]
pub(super) struct Move {
    /// The app
    #[arg(value_name = "APP")]
    pub(super) app: AppName,
    /// The tenant, as its requests name it
    #[arg(value_name = "TENANT")]
    pub(super) tenant: String,
    /// End what it has in flight on the version before
    #[arg(long)]
    pub(super) now: bool,
}

/// `handover drain`
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The app [default: all]
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// The generation [default: all that were replaced]
    #[arg(value_name = "GEN")]
    pub(super) generation: Option<u64>,
    /// Wait until they have ended
    #[arg(long)]
    pub(super) wait: bool,
}

/// `handover canary`
#[derive(Debug, clap::Subcommand)]
pub(super) enum CanaryCommand {
    /// Leave it with the share that it has, until `resume`
    Pause(OfOneApp),
    /// Go on with its steps
    Resume(OfOneApp),
}

/// What the history tells of who asked for something.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// Who asks for it, for the history [default: the user]
    #[arg(long, value_name = "WHO")]
    pub(super) by: Option<String>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub(super) message: Option<String>,
}

/// What is about one app.
#[derive(Debug, clap::Args)]
pub(super) struct OfOneApp {
    /// The app; needed when the host has several
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
}

/// `handover rollback`
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The app; needed when the host has several
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// The version or generation to go back to [default: what was live before]
    #[arg(long, value_name = "VERSION|GEN")]
    pub(super) to: Option<String>,
    /// Where its schema has no way back, restore the state of before its migration: what was
    /// written since then is lost
    #[arg(long)]
    pub(super) restore_snapshot: bool,
    #[command(flatten)]
    pub(super) why: Why,
    /// Wait for what is under way for the app, instead of ending with 8
    #[arg(long)]
    pub(super) queue: bool,
}

/// `handover status`
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// The app [default: all]
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Stay, and show it as it changes, with the requests a second
    #[arg(short, long, conflicts_with = "json")]
    pub(super) watch: bool,
}

/// `handover dashboard`
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Dashboard {
    /// Open it in the browser as well, with xdg-open
    #[arg(long)]
    pub(super) open: bool,
}

/// `handover history`
#[derive(Debug, clap::Args)]
pub(super) struct History {
    /// The app [default: all]
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
}

/// `handover set`
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    /// The app
    #[arg(value_name = "APP")]
    pub(super) app: AppName,
    /// The key
    #[arg(value_name = "KEY")]
    pub(super) key: String,
    /// The value
    #[arg(
        value_name = "VALUE",
        required_unless_present = "unset",
        conflicts_with = "unset",
        allow_hyphen_values = true
    )]
    pub(super) value: Option<String>,
    /// Take the setting away
    #[arg(long)]
    pub(super) unset: bool,
    /// Who changes it, for the history [default: the user]
    #[arg(long, value_name = "WHO")]
    pub(super) by: Option<String>,
}

/// `handover settings`
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// The app [default: the only one]
    #[arg(value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Show the last changes instead
    #[arg(long)]
    pub(super) history: bool,
}

/// `handover send`
#[derive(Debug, clap::Args)]
pub(super) struct Send {
    /// The app
    #[arg(value_name = "APP")]
    pub(super) app: AppName,
    /// The message: a text, or JSON
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) text: String,
    /// How long to wait for the answers
    #[arg(long, value_name = "T", default_value = "30s", value_parser = crate::values::duration)]
    pub(super) timeout: Duration,
    /// Who sends it, for the audit log [default: the user]
    #[arg(long, value_name = "WHO")]
    pub(super) by: Option<String>,
}

/// `handover audit`
#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// Only what was about this app
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Only what was asked for since then: a time as 2026-11-28T08:00:00Z, or how long ago, as 2h
    #[arg(long, value_name = "T", value_parser = super::audit::since)]
    pub(super) since: Option<u64>,
    /// The newest so many
    #[arg(short, value_name = "N", default_value_t = 100)]
    pub(super) number: usize,
}

/// `handover events`
#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// Stay, and show each as it happens
    #[arg(short, long)]
    pub(super) follow: bool,
}

/// `handover logs`
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Stay, and show each record as it comes
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only records of this app
    #[arg(long, value_name = "APP")]
    pub(super) app: Option<AppName>,
    /// Only records of this generation
    #[arg(long, value_name = "GEN")]
    pub(super) generation: Option<u64>,
    /// Only records that matter as much as this or more: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    pub(super) level: Option<LogLevel>,
    /// Only the last so many [default: all, and 10 with --follow]
    #[arg(long, value_name = "N")]
    pub(super) lines: Option<usize>,
    /// Only records after this number, which --json shows as `seq`
    #[arg(long, value_name = "SEQ")]
    pub(super) since: Option<u64>,
}

/// The level of that name.
fn log_level(name: &str) -> Result<LogLevel, String> {
    let found = LogLevel::ALL.iter().find(|level| level.as_str() == name);
    found.copied().ok_or_else(|| {
        let all: Vec<_> = LogLevel::ALL.iter().map(|level| level.as_str()).collect();
        format!("it is one of {}", all.join(", "))
    })
}

/// `handover drain-node`
#[derive(Debug, clap::Args)]
pub(super) struct DrainNode {
    /// Let traffic come again
    #[arg(long, conflicts_with = "wait")]
    pub(super) undo: bool,
    /// Wait until the traffic has gone, for so long at the most
    #[arg(long, value_name = "TIME", value_parser = crate::values::duration)]
    pub(super) wait: Option<Duration>,
}

/// `handover shutdown`
#[derive(Debug, clap::Args)]
pub(super) struct Shutdown {
    /// Do not wait: what is in flight is cut
    #[arg(long)]
    pub(super) now: bool,
}

/// `handover state`
#[derive(Debug, clap::Args)]
pub(super) struct State {
    #[command(subcommand)]
    pub(super) command: StateCommand,
}

/// What to do with the state of an app.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// List keys, one a line
    Ls {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// What the keys begin with [default: all]
        #[arg(value_name = "PREFIX")]
        prefix: Option<String>,
        /// The namespace [default: default]
        #[arg(long, value_name = "NS")]
        namespace: Option<String>,
        /// The key to go on behind
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Print the value of a key, and nothing else
    Get {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The key
        #[arg(value_name = "KEY")]
        key: String,
        /// The namespace [default: default]
        #[arg(long, value_name = "NS")]
        namespace: Option<String>,
    },
    /// Put a value, and print it when it is on the disk
    Put {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The key
        #[arg(value_name = "KEY")]
        key: String,
        /// The value; `-` reads it from standard input
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        value: String,
        /// The namespace [default: default]
        #[arg(long, value_name = "NS")]
        namespace: Option<String>,
        /// How long it stays, e.g. 60s [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = crate::values::duration)]
        ttl: Option<Duration>,
    },
    /// Remove a key
    Rm {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The key
        #[arg(value_name = "KEY")]
        key: String,
        /// The namespace [default: default]
        #[arg(long, value_name = "NS")]
        namespace: Option<String>,
    },
    /// Write all entries as JSON lines, as they are at one time, while the app serves
    Export {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The namespace [default: all that are on the disk]
        #[arg(long, value_name = "NS")]
        namespace: Option<String>,
        /// The key of the namespace to go on behind, after an export that was cut
        #[arg(long, value_name = "KEY", requires = "namespace")]
        after: Option<String>,
    },
    /// Put the entries of an export; keys that are not in it stay
    Import {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The file; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write all that is on the disk to a file, as it is at one time, while the app serves
    Backup {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The file, which is replaced when the backup is whole
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Replace all that is on the disk by a backup, at once
    Restore {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Restore a backup into a store beside the app's, compare all of it, and throw it away
    Verify {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
        /// The file [default: a backup that is made now]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show how much an app keeps, and what of it is allowed
    Stats {
        /// The app
        #[arg(value_name = "APP")]
        app: AppName,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        for line in [
            "handover run --config f.toml --listen 127.0.0.1:0 --plugins p --state s --control c",
            "handover dev example-plugin --listen 127.0.0.1:9000 -r --features a,b --package p",
            "handover new shop",
            "handover check a.so --json",
            "handover doctor --config f.toml --json",
            "handover deploy a.so --app shop --timeout 60s --detach --queue",
            "handover deploy a.so --stage --ttl 1h",
            "handover deploy a.so --label fix-12",
            "handover promote shop --label fix-12 --queue",
            "handover rollback shop --by ci --message broken",
            "handover deploy a.so --canary 5% --steps 5,25%,100 --bake 1m --sticky cookie:session",
            "handover stop shop blog --message bye --queue",
            "handover start --all",
            "handover restart shop",
            "handover pause --max-wait 5s",
            "handover resume shop blog",
            "handover canary pause",
            "handover deploy a.so --shadow 10% --ttl 1h",
            "handover shadow shop",
            "handover drain shop 17 --wait",
            "handover tenants",
            "handover move shop acme --now",
            "handover canary resume shop",
            "handover promote",
            "handover abort shop",
            "handover reload shop --queue",
            "handover rollback --queue",
            "handover reload",
            "handover reload shop",
            "handover rollback shop --to 1.0.0",
            "handover rollback --to 7",
            "handover status shop --json",
            "handover status -w",
            "handover history shop",
            "handover events -f",
            "handover logs -f --app shop --generation 7 --level warn --lines 5",
            "handover logs --since 12 --json",
            "handover inspect a.so --no-color",
            "handover state ls shop user/ --namespace carts --after user/7 --limit 10",
            "handover state get shop a --namespace memory:cache",
            "handover state put shop a -5 --ttl 60s --json",
            "handover state rm shop a",
            "handover state export shop --namespace carts --after a",
            "handover state import shop -",
            "handover state backup shop f",
            "handover state restore shop f",
            "handover state verify shop",
            "handover state stats shop",
            "handover completions bash",
            "handover man",
            "handover man pages",
            "handover shutdown --now",
            "handover --control s status",
        ] {
            parse(line).unwrap();
        }
    }

    #[test]
    fn usage_errors_are_exit_code_2() {
        for line in [
            "handover",
            "handover deploy",
            "handover deploy a.so --timeout soon",
            "handover status No-Name",
            "handover deploy a.so --label A_b",
            "handover deploy a.so --stage --label a",
            "handover deploy a.so --stage --canary 5%",
            "handover deploy a.so --canary 0",
            "handover deploy a.so --shadow 5% --canary 5%",
            "handover deploy a.so --shadow 5% --stage",
            "handover stop shop --all",
            "handover stop shop --message a --page b",
            "handover deploy a.so --canary 5 --steps 25,5",
            "handover deploy a.so --steps 5,25",
            "handover deploy a.so --canary 5 --sticky session",
            "handover deploy a.so --ttl 1h",
            "handover status -w --json",
            "handover logs --level loud",
            "handover logs --generation now",
            "handover run --listen here",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let Command::Deploy(deploy) = parse("handover deploy a.so --timeout 1m30s")
            .unwrap()
            .command
        else {
            panic!()
        };
        assert_eq!(deploy.timeout, Some(Duration::from_secs(90)));
    }
}
