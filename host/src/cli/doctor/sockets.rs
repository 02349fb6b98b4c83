//! The addresses that are configured, and the control socket.

use std::{fs, net::SocketAddr, os::unix::ffi::OsStrExt, path::Path};

use handover_api::socket::{self, LONGEST_ADDRESS};
use nix::unistd::{Gid, Uid, getegid, getgroups};

use super::{Finding, running::Running};
use crate::{
    config::{Config, ListenAddress},
    daemon,
    net::listeners,
    ownership,
};

pub(super) fn check(config: &Config, control: &Path, host: &Running) -> Vec<Finding> {
    let mut findings = addresses(config, host);
    findings.extend(control_socket(config, control, host));
    findings.extend(group(config));
    findings
}

/// Whether each address is free, or the host's that runs.
fn addresses(config: &Config, host: &Running) -> Vec<Finding> {
    const CHECK: &str = "listen";
    let taken = host.addresses();
    let wanted = listeners::wanted(config).into_iter();
    wanted
        .map(|(key, options)| {
            let address = &key.address;
            if taken
                .iter()
                .any(|taken| taken.ends_with(&address.to_string()))
            {
                return Finding::ok(CHECK, format!("the host that runs listens at {address}"));
            }
            match address {
                ListenAddress::Unix(path) => unix(path),
                ListenAddress::Tcp(tcp) if tcp.port() == 0 => {
                    Finding::ok(CHECK, format!("{} at any free port", tcp.ip()))
                }
                ListenAddress::Tcp(tcp) => match listeners::try_to_bind(&key, &options) {
                    Ok(()) => Finding::ok(CHECK, format!("{address} is free")),
                    Err(error) if error.is_in_use() => in_use(*tcp, &error.to_string()),
                    Err(error) => Finding::error(CHECK, error),
                },
            }
        })
        .collect()
}

fn in_use(address: SocketAddr, error: &str) -> Finding {
    match owner(address) {
        // A socket unit of systemd, which gives it to the host that it starts.
        Some((1, name)) => Finding::warning(
            "listen",
            format!("{address} is held by process 1 ({name})"),
            "fine if that is the socket unit of the host (`systemctl list-sockets`)",
        ),
        Some((pid, name)) => Finding::problem(
            "listen",
            format!("{address} is in use by process {pid} ({name})"),
            "end it, or choose another address",
        ),
        None => Finding::error("listen", error),
    }
}

/// The process that listens at `address`, if we may see it.
fn owner(address: SocketAddr) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let tables = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    let inodes: Vec<String> = tables
        .flat_map(|table| {
            let lines = table.lines().skip(1).map(str::to_owned);
            lines.collect::<Vec<_>>()
        })
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
            let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            // 0A is LISTEN.
            (*state == "0A" && port == address.port()).then(|| format!("socket:[{inode}]"))
        })
        .collect();
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let open = fs::read_dir(entry.path().join("fd")).ok()?;
        let mut links = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links
            .any(|link| {
                inodes
                    .iter()
                    .any(|inode| link.as_os_str() == inode.as_str())
            })
            .then(|| {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                (pid, name.trim().to_owned())
            })
    })
}

fn unix(path: &Path) -> Finding {
    const CHECK: &str = "listen";
    let folder = socket::folder(path);
    match rustix::fs::access(
        folder,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    ) {
        Ok(()) => Finding::ok(CHECK, format!("unix:{} can be made", path.display())),
        Err(error) => Finding::problem(
            CHECK,
            format!("unix:{} cannot be made: {error}", path.display()),
            "make its folder, and let the host write there",
        ),
    }
}

fn control_socket(config: &Config, control: &Path, host: &Running) -> Vec<Finding> {
    const CHECK: &str = "control";
    let mut findings = Vec::new();
    let length = control.as_os_str().as_bytes().len();
    if length > LONGEST_ADDRESS {
        findings.push(Finding::warning(
            CHECK,
            format!("the path of the control socket has {length} bytes, and other programs than handover reach none beyond {LONGEST_ADDRESS}"),
            "name a shorter one (server.control, --control)",
        ));
    }
    let folder = socket::folder(control);
    if !config.trust.insecure_paths
        && folder.exists()
        && let Err(error) = ownership::check(folder)
    {
        findings.push(Finding::error(CHECK, error));
    }
    findings.push(match host {
        Running::Answers(_) => {
            Finding::ok(CHECK, format!("a host answers at {}", control.display()))
        }
        Running::Denies(error) => Finding::warning(
            CHECK,
            error,
            "be in the group of `control.group`, or be named in [control]",
        ),
        Running::Fails(error) => Finding::problem(
            CHECK,
            format!(
                "who listens at {} does not answer: {error}",
                control.display()
            ),
            "look at the log of the host, and start it again",
        ),
        Running::None => match fs::symlink_metadata(control) {
            Ok(facts) if !std::os::unix::fs::FileTypeExt::is_socket(&facts.file_type()) => {
                Finding::problem(
                    CHECK,
                    format!("{} is no socket", control.display()),
                    "move it away, or name another control socket",
                )
            }
            _ => Finding::ok(CHECK, format!("no host answers at {}", control.display())),
        },
    });
    findings
}

/// Whether those may be let in who are named, and whether the host is of the group that it gives
/// its socket to.
fn group(config: &Config) -> Option<Finding> {
    const CHECK: &str = "control-group";
    let gid = match daemon::admit(&config.control, &config.server) {
        Ok((_, group)) => Gid::from_raw(group?),
        Err(error) => return Some(Finding::error(CHECK, error)),
    };
    let name = config.control.group.clone().unwrap_or_default();
    let is_member = Uid::effective().is_root()
        || getegid() == gid
        || getgroups().is_ok_and(|groups| groups.contains(&gid));
    Some(if is_member {
        Finding::ok(
            CHECK,
            format!("the socket can be given to the group {name}"),
        )
    } else {
        Finding::problem(
            CHECK,
            format!("this user is not in the group {name}, and cannot give the socket to it"),
            format!("`usermod -aG {name} USER`, or SupplementaryGroups={name} in the unit"),
        )
    })
}
