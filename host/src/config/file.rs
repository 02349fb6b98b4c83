//! The TOML as it is written: each value parsed by its own type, so that an error knows its line.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use handover_api::AppName;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use super::{
    App, CertificateFiles, Check, Clients, Config, ConfigError, Control, Execution, LabelHost,
    Labels, LeakBudget, Leave, Listen, ListenAddress, ListenSocket, ListenTls, Log, LogFormat,
    LogRotation, Metrics, Protocols, RoutePrefix, Server, SmokeRequest, SocketOptions, Timeouts,
    TlsVersion, Trust, TrustedProxies, TrustedProxy, Watch, WhenFull, Who,
};
use crate::{artifact::Key, state, work};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    server: ServerTable,
    listen: Vec<Spanned<ListenTable>>,
    control: ControlTable,
    metrics: MetricsTable,
    trust: TrustTable,
    log: LogTable,
    app: BTreeMap<AppName, AppTable>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ServerTable {
    listen: Option<Text<SocketAddr>>,
    workers: Option<Count<1, THREADS>>,
    spare_workers: Option<Count<0, THREADS>>,
    stall_after: Option<Limit>,
    plugins: Option<PathBuf>,
    state: Option<PathBuf>,
    control: Option<PathBuf>,
    version_header: bool,
    shutdown_deadline: Option<Span>,
    max_crashes: Option<Count<1, MANY>>,
    crash_window: Option<Span>,
    leak_budget: LeakBudgetTable,
    first_byte_timeout: Option<Patience>,
    head_timeout: Option<Patience>,
    body_timeout: Option<Patience>,
    idle_timeout: Option<Patience>,
    write_timeout: Option<Patience>,
    http2_ping: Option<Patience>,
    http2_ping_timeout: Option<Span>,
    max_connections: Option<Count<1, MANY>>,
    max_connections_per_address: Option<Count<1, MANY>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ListenTable {
    address: Option<Text<ListenAddress>>,
    socket: Option<Spanned<String>>,
    reuse_port: bool,
    ipv6_only: bool,
    mode: Option<FileMode>,
    protocols: Option<Vec<Protocol>>,
    proxy_protocol: bool,
    trusted_proxies: Vec<Spanned<String>>,
    tls: Option<Spanned<TlsTable>>,
    http_to_https: bool,
    hsts: Option<Limit>,
    canonical_host: Option<HostName>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TlsTable {
    certificates: Vec<CertificateTable>,
    client_ca: Option<PathBuf>,
    client_auth: Option<ClientAuth>,
    min_version: Option<MinVersion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateTable {
    chain: PathBuf,
    key: PathBuf,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum ClientAuth {
    Required,
    Optional,
}

#[derive(Clone, Copy, Deserialize)]
enum MinVersion {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
enum Protocol {
    #[serde(rename = "h1")]
    Http1,
    #[serde(rename = "h2")]
    Http2,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LeakBudgetTable {
    bytes: Option<Size>,
    descriptors: Option<Count<0, MANY>>,
    retained: Option<Count<0, MANY>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ControlTable {
    /// Parsed later, as routes are.
    operate: Vec<Spanned<String>>,
    observe: Vec<Spanned<String>>,
    group: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MetricsTable {
    listen: Option<Text<SocketAddr>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TrustTable {
    keys: Vec<Spanned<String>>,
    insecure_paths: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LogTable {
    level: Option<Filter>,
    format: Option<Format>,
    file: Option<PathBuf>,
    max_size: Option<SizeLimit>,
    max_age: Option<Limit>,
    keep: Option<Count<0, FILES>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AppTable {
    /// Parsed later: an error in a list is told with the span of the whole list.
    routes: Vec<Spanned<String>>,
    watch: Option<WatchWord>,
    min_version: Option<Text<semver::Version>>,
    drain_deadline: Option<Limit>,
    job_deadline: Option<Limit>,
    bake: Option<Limit>,
    request_timeout: Option<Limit>,
    max_concurrent: Option<Count<1, MANY>>,
    queue: Option<Count<0, MANY>>,
    execution: Option<ExecutionWord>,
    execution_threads: Option<Count<1, THREADS>>,
    max_old_generations: Option<Count<1, FILES>>,
    when_full: Option<WhenFullWord>,
    runtime_threads: Option<Count<1, THREADS>>,
    env: Vec<EnvName>,
    args: Vec<Argument>,
    keep_artifacts: Option<Count<0, MANY>>,
    keep_warm: Option<Limit>,
    config: toml::Table,
    labels: LabelsTable,
    state: StateTable,
    jobs: JobsTable,
    lease: BTreeMap<String, LeaseTable>,
    check: CheckTable,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LabelsTable {
    allow: Vec<Text<TrustedProxy>>,
    host: Option<Text<LabelHost>>,
    ttl: Option<Limit>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct StateTable {
    max_size: Option<Size>,
    answers_wait: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct JobsTable {
    max_running: Option<Count<1, MANY>>,
    keep_done: Option<Span>,
    keep_dead: Option<Span>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LeaseTable {
    mirror: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct CheckTable {
    start: Option<bool>,
    deadline: Option<Span>,
    env: BTreeMap<EnvName, Argument>,
    requests: Vec<Request>,
    leave: Option<Leave>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    Text,
    Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WatchWord {
    Deploy,
    Stage,
    Off,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ExecutionWord {
    Shared,
    Own,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WhenFullWord {
    Refuse,
    EndOldest,
}

/// A value written as text.
struct Text<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// More threads than this are a slip of the pen on any machine.
const THREADS: usize = 1024;

/// The same for what takes a file or a generation each.
const FILES: usize = 1000;

/// The same for what is only counted.
const MANY: usize = 1_000_000_000;

/// A number within its bounds.
#[derive(Clone, Copy)]
struct Count<const LEAST: usize, const MOST: usize>(usize);

impl<const LEAST: usize, const MOST: usize> Count<LEAST, MOST> {
    fn get(self) -> usize {
        self.0
    }

    fn nonzero(self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.0)
    }
}

impl<'de, const LEAST: usize, const MOST: usize> Deserialize<'de> for Count<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(from)?;
        match usize::try_from(number) {
            Ok(count) if (LEAST..=MOST).contains(&count) => Ok(Self(count)),
            _ => Err(D::Error::custom(format!(
                "it cannot be {number}: write a number from {LEAST} to {MOST}"
            ))),
        }
    }
}

/// A length of time, more than none.
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match duration(&String::deserialize(from)?).map_err(D::Error::custom)? {
            Duration::ZERO => Err(D::Error::custom("it cannot be zero: write e.g. \"30s\"")),
            some => Ok(Self(some)),
        }
    }
}

/// A length of time, or `none`.
struct Limit(Option<Duration>);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "none" {
            return Ok(Self(None));
        }
        duration(&text)
            .map(|span| Self(Some(span)))
            .map_err(|error| D::Error::custom(format!("{error}, or \"none\"")))
    }
}

/// A length of time, more than none, or `none`.
struct Patience(Option<Duration>);

impl<'de> Deserialize<'de> for Patience {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Limit::deserialize(from)?.0 {
            Some(Duration::ZERO) => Err(D::Error::custom(
                "it cannot be zero: write e.g. \"30s\", or \"none\" for no limit",
            )),
            some_or_none => Ok(Self(some_or_none)),
        }
    }
}

/// The longest time that can be set: beyond it sums of times have no place in the clocks of a
/// computer.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A length of time as people write it.
///
/// # Errors
/// The sentence for a person.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |what: &str| {
        format!("`{text}` is not a length of time ({what}): write e.g. \"500ms\", \"30s\", \"1h\"")
    };
    match humantime::parse_duration(text) {
        Err(error) => Err(wrong(&error.to_string())),
        Ok(span) if span > LONGEST => Err(wrong("more than 3650 days")),
        Ok(span) => Ok(span),
    }
}

/// A number of bytes.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        size(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a size: write e.g. \"512KiB\", \"64MiB\", \"1GiB\""
            ))
        })
    }
}

/// A number of bytes, or `none`.
struct SizeLimit(Option<u64>);

impl<'de> Deserialize<'de> for SizeLimit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match (text.as_str(), size(&text)) {
            ("none", _) => Ok(Self(None)),
            (_, Some(bytes @ 1..)) => Ok(Self(Some(bytes))),
            _ => Err(D::Error::custom(format!(
                "`{text}` is not a size, more than none: write e.g. \"64MiB\", \"1GiB\", or \"none\""
            ))),
        }
    }
}

/// The largest size that can be set, a pebibyte.
const LARGEST: u64 = 1 << 50;

fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let shift = match unit.trim_start() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes <= LARGEST).then_some(bytes)
}

/// The mode of a file, in octal.
struct FileMode(u32);

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(D::Error::custom(format!(
                "`{text}` is no mode of a file: write e.g. \"0660\""
            ))),
        }
    }
}

/// The name of a host, in small letters.
struct HostName(String);

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let is_host = text
            .parse::<http::uri::Authority>()
            .is_ok_and(|authority| authority.host() == text);
        if !is_host {
            return Err(D::Error::custom(format!(
                "`{text}` is no name of a host: write e.g. \"example.org\", without a port"
            )));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// The name of an environment variable.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct EnvName(String);

impl<'de> Deserialize<'de> for EnvName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(D::Error::custom(format!(
                "`{name}` is not the name of a variable: list names only, their values come from the host's own environment"
            )));
        }
        Ok(Self(name))
    }
}

/// An argument of a program, or the value of a variable.
struct Argument(String);

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.contains('\0') {
            return Err(D::Error::custom("there is no zero byte in it"));
        }
        Ok(Self(text))
    }
}

/// A filter of the log.
struct Filter(String);

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.parse::<tracing_subscriber::filter::Targets>() {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(D::Error::custom(format!(
                "`{text}` is not a log filter ({error}): write e.g. \"info\" or \"info,handover=debug\""
            ))),
        }
    }
}

/// One smoke request.
struct Request(SmokeRequest);

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let request = SmokeRequest::deserialize(from)?;
        if !request.path.starts_with('/') {
            return Err(D::Error::custom(format!(
                "the path `{}` does not begin with `/`: write e.g. \"/healthz\"",
                request.path
            )));
        }
        if !(200..=599).contains(&request.status) {
            return Err(D::Error::custom(format!(
                "{} is not a final HTTP status: use 200 to 599",
                request.status
            )));
        }
        let fields = request.send.iter().chain(&request.headers);
        for (name, value) in fields {
            if HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err() {
                return Err(D::Error::custom(format!(
                    "`{name}: {value}` is not a header field"
                )));
            }
        }
        if let Some(within) = &request.within {
            duration(within).map_err(D::Error::custom)?;
        }
        Ok(Self(request))
    }
}

/// Reads `text`, which is what the file at `path` holds.
pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { path, text };
    let file: ConfigFile = toml::from_str(text)
        .map_err(|error| source.error(error.span(), &with_suggestion(error.message())))?;
    let folder = &super::absolute(match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    });

    let names_listen = file.server.listen.is_some();
    let listen = listeners(&source, file.listen, folder)?;
    let mut apps = BTreeMap::new();
    let mut taken: BTreeMap<RoutePrefix, AppName> = BTreeMap::new();
    for (name, table) in file.app {
        let mut routes = Vec::new();
        for route in &table.routes {
            let prefix: RoutePrefix = route
                .get_ref()
                .parse()
                .map_err(|error| source.error(Some(route.span()), &format!("{error}")))?;
            if let Some(other) = taken.insert(prefix.clone(), name.clone()) {
                return Err(source.error(
                    Some(route.span()),
                    &format!("the route `{prefix}` of app `{name}` is also a route of app `{other}`: a route has one app"),
                ));
            }
            routes.push(prefix);
        }
        let config = json(toml::Value::Table(table.config.clone()))
            .map_err(|what| source.error(None, &format!("app.{name}.config: {what}")))?;
        apps.insert(name, app(table, routes, config, folder));
    }
    let control = Control {
        operate: source.each::<Who>(&file.control.operate)?,
        observe: source.each::<Who>(&file.control.observe)?,
        group: file.control.group,
    };
    if control.group.is_none()
        && let Some(named) = file
            .control
            .operate
            .iter()
            .chain(&file.control.observe)
            .next()
    {
        return Err(source.error(
            Some(named.span()),
            "nobody but the host's user and root can open the control socket: set control.group to a group of those named here",
        ));
    }
    let trust = Trust {
        keys: source.each::<Key>(&file.trust.keys)?.into(),
        insecure_paths: file.trust.insecure_paths,
    };
    let mut server = server(file.server, folder);
    if !listen.is_empty() && !names_listen {
        server.listen = None;
    }
    Ok(Config {
        server,
        listen,
        control,
        metrics: Metrics {
            listen: file.metrics.listen.map(|address| address.0),
        },
        trust,
        log: log(file.log, folder),
        apps,
    })
}

/// Each `[[listen]]`, with what must hold between its keys.
fn listeners(
    source: &Source<'_>,
    tables: Vec<Spanned<ListenTable>>,
    folder: &Path,
) -> Result<Vec<Listen>, ConfigError> {
    let mut listeners: Vec<Listen> = Vec::new();
    for table in tables {
        let span = table.span();
        let wrong = |what: &str| Err(source.error(Some(span.clone()), what));
        let table = table.into_inner();
        let socket = match (table.address, table.socket) {
            (Some(address), None) => ListenSocket::Address(match address.0 {
                ListenAddress::Unix(path) => ListenAddress::Unix(folder.join(path)),
                address @ ListenAddress::Tcp(_) => address,
            }),
            (None, Some(name))
                if name.get_ref().is_empty() || name.get_ref().contains([':', ',']) =>
            {
                return Err(source.error(
                    Some(name.span()),
                    "it is no name of a socket: write what FileDescriptorName= of the socket unit says",
                ));
            }
            (None, Some(name)) => ListenSocket::Named(name.into_inner()),
            _ => {
                return wrong(
                    "a listener has either an `address` (\"0.0.0.0:80\", \"unix:/run/web.sock\") or the name of a `socket` \
                     that systemd hands over: write one of them",
                );
            }
        };
        if let Some(other) = listeners.iter().find(|other| other.socket == socket)
            && !is_any_port(&socket)
        {
            return wrong(&format!(
                "the same is listened at already ({}): take one of them out",
                other.place
            ));
        }
        let is_unix = matches!(socket, ListenSocket::Address(ListenAddress::Unix(_)));
        if is_unix && (table.reuse_port || table.ipv6_only) {
            return wrong(
                "a unix socket has no port to share and no IPv6: take `reuse_port` and `ipv6_only` out",
            );
        }
        if !is_unix && table.mode.is_some() {
            return wrong("only a unix socket has a `mode`: take it out");
        }
        let protocols = match table.protocols {
            None => Protocols::default(),
            Some(list) if list.is_empty() => {
                return wrong(
                    "`protocols` names none: write \"h1\", \"h2\" or both, or leave it out",
                );
            }
            Some(list) => Protocols {
                http1: list.contains(&Protocol::Http1),
                http2: list.contains(&Protocol::Http2),
            },
        };
        let trusted: TrustedProxies = source
            .each::<TrustedProxy>(&table.trusted_proxies)?
            .into_iter()
            .collect();
        if table.proxy_protocol && trusted.is_empty() {
            return wrong(
                "`proxy_protocol` believes whoever connects: name the proxies in `trusted_proxies`, e.g. [\"10.0.0.0/8\"]",
            );
        }
        let tls = table
            .tls
            .map(|table| listen_tls(source, table, folder))
            .transpose()?;
        if tls.is_some() && table.http_to_https {
            return wrong(
                "`http_to_https` is for listeners without `tls`, whose clients came by https already: \
                 take one of them out",
            );
        }
        listeners.push(Listen {
            place: source.place(&span),
            socket,
            options: SocketOptions {
                reuse_port: table.reuse_port,
                ipv6_only: table.ipv6_only,
                mode: table.mode.map(|mode| mode.0),
            },
            protocols,
            proxy_protocol: table.proxy_protocol,
            trusted_proxies: Some(trusted),
            tls,
            http_to_https: table.http_to_https,
            hsts: table.hsts.and_then(|limit| limit.0),
            canonical_host: table.canonical_host.map(|host| host.0),
        });
    }
    Ok(listeners)
}

/// `tls` of a `[[listen]]`, with what must hold between its keys.
fn listen_tls(
    source: &Source<'_>,
    table: Spanned<TlsTable>,
    folder: &Path,
) -> Result<ListenTls, ConfigError> {
    let span = table.span();
    let table = table.into_inner();
    let wrong = |what: &str| Err(source.error(Some(span.clone()), what));
    if table.certificates.is_empty() {
        return wrong(
            "tls: no certificate is named: write `certificates = [{ chain = \"fullchain.pem\", key = \
             \"privkey.pem\" }]`",
        );
    }
    if table.client_auth.is_some() && table.client_ca.is_none() {
        return wrong(
            "tls: `client_auth` takes a `client_ca`, the file of the authorities whose clients are \
             let in",
        );
    }
    Ok(ListenTls {
        certificates: table
            .certificates
            .into_iter()
            .map(|pair| CertificateFiles {
                chain: folder.join(pair.chain),
                key: folder.join(pair.key),
            })
            .collect(),
        client_certificate_required: table.client_auth != Some(ClientAuth::Optional),
        client_ca: table.client_ca.map(|path| folder.join(path)),
        min_version: match table.min_version {
            None | Some(MinVersion::Tls12) => TlsVersion::Tls12,
            Some(MinVersion::Tls13) => TlsVersion::Tls13,
        },
    })
}

/// Whether the system chooses the port, so that two of them are not the same.
fn is_any_port(socket: &ListenSocket) -> bool {
    matches!(socket, ListenSocket::Address(ListenAddress::Tcp(address)) if address.port() == 0)
}

fn server(table: ServerTable, folder: &Path) -> Server {
    let default = Server::under(folder);
    let state = table.state.map_or(default.state, |path| folder.join(path));
    let patience = |written: Option<Patience>, default| written.map_or(default, |limit| limit.0);
    Server {
        listen: table.listen.map(|address| address.0).or(default.listen),
        workers: table.workers.and_then(Count::nonzero),
        spare_workers: table
            .spare_workers
            .map_or(default.spare_workers, Count::get),
        stall_after: table
            .stall_after
            .map_or(default.stall_after, |limit| limit.0),
        plugins: table
            .plugins
            .map_or(default.plugins, |path| folder.join(path)),
        control: table
            .control
            .map_or_else(|| state.join("control.sock"), |path| folder.join(path)),
        state,
        version_header: table.version_header,
        shutdown_deadline: table
            .shutdown_deadline
            .map_or(default.shutdown_deadline, |span| span.0),
        max_crashes: table
            .max_crashes
            .and_then(Count::nonzero)
            .unwrap_or(default.max_crashes),
        crash_window: table
            .crash_window
            .map_or(default.crash_window, |span| span.0),
        leak_budget: LeakBudget {
            bytes: table
                .leak_budget
                .bytes
                .map_or(default.leak_budget.bytes, |size| size.0),
            descriptors: table
                .leak_budget
                .descriptors
                .map_or(default.leak_budget.descriptors, |count| count.get() as u64),
            retained: table
                .leak_budget
                .retained
                .map_or(default.leak_budget.retained, |count| count.get() as u64),
        },
        timeouts: Timeouts {
            first_byte: patience(table.first_byte_timeout, default.timeouts.first_byte),
            head: patience(table.head_timeout, default.timeouts.head),
            body: patience(table.body_timeout, default.timeouts.body),
            idle: patience(table.idle_timeout, default.timeouts.idle),
            write: patience(table.write_timeout, default.timeouts.write),
            http2_ping: patience(table.http2_ping, default.timeouts.http2_ping),
            http2_pong: table
                .http2_ping_timeout
                .map_or(default.timeouts.http2_pong, |span| span.0),
        },
        clients: Clients {
            max_connections: table.max_connections.and_then(Count::nonzero),
            max_connections_per_address: table.max_connections_per_address.and_then(Count::nonzero),
        },
    }
}

fn log(table: LogTable, folder: &Path) -> Log {
    let default = Log::default();
    Log {
        level: table.level.map_or(default.level, |filter| filter.0),
        format: match table.format {
            None => default.format,
            Some(Format::Text) => LogFormat::Text,
            Some(Format::Json) => LogFormat::Json,
        },
        file: table.file.map(|path| folder.join(path)),
        rotation: LogRotation {
            max_size: table
                .max_size
                .map_or(default.rotation.max_size, |limit| limit.0),
            max_age: table
                .max_age
                .map_or(default.rotation.max_age, |limit| limit.0),
            keep: table.keep.map_or(default.rotation.keep, Count::get),
        },
    }
}

fn app(table: AppTable, routes: Vec<RoutePrefix>, config: serde_json::Value, folder: &Path) -> App {
    let default = App::default();
    App {
        routes,
        watch: match table.watch {
            None => default.watch,
            Some(WatchWord::Deploy) => Watch::Deploy,
            Some(WatchWord::Stage) => Watch::Stage,
            Some(WatchWord::Off) => Watch::Off,
        },
        min_version: table.min_version.map(|version| version.0),
        drain_deadline: table
            .drain_deadline
            .map_or(default.drain_deadline, |limit| limit.0),
        job_deadline: table
            .job_deadline
            .map_or(default.job_deadline, |limit| limit.0),
        bake: table.bake.map_or(default.bake, |limit| limit.0),
        request_timeout: table
            .request_timeout
            .map_or(default.request_timeout, |limit| limit.0),
        max_concurrent: table
            .max_concurrent
            .map_or(default.max_concurrent, Count::nonzero),
        queue: table.queue.map_or(default.queue, Count::get),
        execution: match table.execution {
            None => default.execution,
            Some(ExecutionWord::Shared) => Execution::Shared,
            Some(ExecutionWord::Own) => Execution::Own {
                threads: table.execution_threads.and_then(Count::nonzero),
            },
        },
        max_old_generations: table
            .max_old_generations
            .map_or(default.max_old_generations, Count::get),
        when_full: match table.when_full {
            None => default.when_full,
            Some(WhenFullWord::Refuse) => WhenFull::Refuse,
            Some(WhenFullWord::EndOldest) => WhenFull::EndOldest,
        },
        runtime_threads: table
            .runtime_threads
            .and_then(Count::nonzero)
            .unwrap_or(default.runtime_threads),
        env: table.env.into_iter().map(|name| name.0).collect(),
        keep_warm: table.keep_warm.map_or(default.keep_warm, |limit| limit.0),
        labels: Arc::new(Labels {
            allow: table.labels.allow.into_iter().map(|text| text.0).collect(),
            host: table.labels.host.map(|host| host.0),
            ttl: table.labels.ttl.and_then(|limit| limit.0),
        }),
        state: state::Settings {
            max_size: table
                .state
                .max_size
                .map_or(default.state.max_size, |size| size.0),
            answers_wait: table
                .state
                .answers_wait
                .unwrap_or(default.state.answers_wait),
        },
        jobs: work::Settings {
            max_running: table
                .jobs
                .max_running
                .map_or(default.jobs.max_running, Count::get),
            keep_done: table
                .jobs
                .keep_done
                .map_or(default.jobs.keep_done, |span| span.0),
            keep_dead: table
                .jobs
                .keep_dead
                .map_or(default.jobs.keep_dead, |span| span.0),
        },
        leases: table
            .lease
            .into_iter()
            .filter_map(|(name, lease)| Some((name, folder.join(lease.mirror?))))
            .collect(),
        args: table.args.into_iter().map(|argument| argument.0).collect(),
        keep_artifacts: table
            .keep_artifacts
            .map_or(default.keep_artifacts, Count::get),
        config,
        check: Check {
            start: table.check.start.unwrap_or(default.check.start),
            deadline: table
                .check
                .deadline
                .map_or(default.check.deadline, |span| span.0),
            env: table
                .check
                .env
                .into_iter()
                .map(|(name, value)| (name.0, value.0))
                .collect(),
            requests: table
                .check
                .requests
                .into_iter()
                .map(|request| request.0)
                .collect(),
            leave: table.check.leave.unwrap_or(default.check.leave),
        },
    }
}

/// The JSON of a TOML value: dates become text.
fn json(value: toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .ok_or_else(|| format!("{number} has no place in JSON: write a finite number"))?
            .into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => table
            .into_iter()
            .map(|(key, value)| Ok((key, json(value)?)))
            .collect::<Result<serde_json::Map<_, _>, String>>()?
            .into(),
    })
}

/// Adds the nearest known name to ``unknown field `x`, expected one of `y`, `z` ``.
fn with_suggestion(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some((wrong, known)), true) = (
        names.split_first(),
        message.starts_with("unknown field") || message.starts_with("unknown variant"),
    ) else {
        return message.to_owned();
    };
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.8 => {
            format!("there is no `{wrong}` here: did you mean `{name}`?")
        }
        _ => format!(
            "there is no `{wrong}` here: use one of {}",
            known.join(", ")
        ),
    }
}

/// The file, to say where in it something is wrong.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// The values of a list, each error told with its own line.
    fn each<T: FromStr<Err: Display>>(
        &self,
        list: &[Spanned<String>],
    ) -> Result<Vec<T>, ConfigError> {
        list.iter()
            .map(|text| {
                text.get_ref()
                    .parse()
                    .map_err(|error: T::Err| self.error(Some(text.span()), &error.to_string()))
            })
            .collect()
    }

    /// `FILE:LINE: listen`, of a `[[listen]]`.
    fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or_default();
        format!(
            "{}:{}: listen",
            self.path.display(),
            before.matches('\n').count() + 1
        )
    }

    /// `FILE:LINE: KEY: what`.
    fn error(&self, span: Option<Range<usize>>, what: &str) -> ConfigError {
        let file = self.path.display();
        let Some(before) = span.and_then(|span| self.text.get(..span.start)) else {
            return ConfigError(format!("{file}: {what}"));
        };
        let line = before.matches('\n').count();
        let key = match self.key(line) {
            Some(key) => format!("{key}: "),
            None => String::new(),
        };
        ConfigError(format!("{file}:{}: {key}{}", line + 1, what.trim_end()))
    }

    /// The key that is set in `line` or before it, with the table it is in.
    fn key(&self, line: usize) -> Option<String> {
        let mut key = None;
        let lines: Vec<&str> = self.text.lines().take(line + 1).collect();
        for text in lines.iter().rev().map(|text| text.trim()) {
            if let Some(table) = text.strip_prefix('[').filter(|_| !text.contains('=')) {
                let table = table.split(']').next()?.trim_start_matches('[');
                return Some(key.map_or(table.to_owned(), |key| format!("{table}.{key}")));
            }
            if key.is_none()
                && let Some((left, _)) = text.split_once('=')
                && !left.trim().starts_with(['{', '#', '"'])
            {
                key = Some(left.trim());
            }
        }
        key.map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        parse(Path::new("/etc/handover.toml"), text)
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    fn name(text: &str) -> AppName {
        text.parse().unwrap()
    }

    #[test]
    fn every_key_is_read() {
        let config = read(
            r#"
            [server]
            listen = "0.0.0.0:80"
            workers = 3
            spare_workers = 1
            stall_after = "none"
            plugins = "drop"
            state = "/var/lib/handover"
            version_header = true
            shutdown_deadline = "1m"
            max_crashes = 5
            crash_window = "2m"
            leak_budget = { bytes = "512KiB", retained = 0 }
            first_byte_timeout = "5s"
            head_timeout = "10s"
            body_timeout = "15s"
            idle_timeout = "none"
            write_timeout = "1m"
            http2_ping = "20s"
            http2_ping_timeout = "3s"
            max_connections = 1000
            max_connections_per_address = 100
            [control]
            operate = ["1001", "deploy", "@ops"]
            observe = ["@1002"]
            group = "ops"
            [trust]
            keys = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
            insecure_paths = true
            [log]
            level = "info,handover=debug"
            format = "json"
            file = "log/host.log"
            max_size = "1MiB"
            max_age = "1d"
            keep = 2
            [app.shop]
            routes = ["/", "Example.org/", "/api/"]
            watch = "stage"
            min_version = "1.2.0"
            drain_deadline = "none"
            job_deadline = "2h"
            bake = "5m"
            request_timeout = "10s"
            max_concurrent = 100
            queue = 20
            execution = "own"
            execution_threads = 3
            max_old_generations = 2
            when_full = "end-oldest"
            runtime_threads = 2
            env = ["HOME"]
            keep_artifacts = 0
            [app.shop.config]
            title = "Shop"
            since = 2020-01-02
            deep = { list = [1, 2.5, true] }
            [app.shop.check]
            start = false
            deadline = "5s"
            requests = [{ path = "/healthz" }, { path = "/gone", status = 410 }]
            "#,
        )
        .unwrap();
        let server = &config.server;
        assert_eq!(server.listen, "0.0.0.0:80".parse().ok());
        assert_eq!(server.workers.unwrap().get(), 3);
        assert_eq!((server.spare_workers, server.stall_after), (1, None));
        assert_eq!(server.plugins, Path::new("/etc/drop"));
        assert_eq!(server.state, Path::new("/var/lib/handover"));
        assert_eq!(server.control, Path::new("/var/lib/handover/control.sock"));
        assert!(server.version_header);
        assert_eq!(server.shutdown_deadline, Duration::from_secs(60));
        assert_eq!(server.max_crashes.get(), 5);
        assert_eq!(server.crash_window, Duration::from_secs(120));
        assert_eq!(
            server.leak_budget,
            LeakBudget {
                bytes: 512 << 10,
                descriptors: 64,
                retained: 0
            }
        );
        assert_eq!(
            server.timeouts,
            Timeouts {
                first_byte: Some(Duration::from_secs(5)),
                head: Some(Duration::from_secs(10)),
                body: Some(Duration::from_secs(15)),
                idle: None,
                write: Some(Duration::from_secs(60)),
                http2_ping: Some(Duration::from_secs(20)),
                http2_pong: Duration::from_secs(3),
            }
        );
        assert_eq!(
            server.clients,
            Clients {
                max_connections: NonZeroUsize::new(1000),
                max_connections_per_address: NonZeroUsize::new(100),
            }
        );
        assert_eq!(
            (config.log.level.as_str(), config.log.format),
            ("info,handover=debug", LogFormat::Json)
        );
        assert_eq!(
            config.log.file.as_deref(),
            Some(Path::new("/etc/log/host.log"))
        );
        assert_eq!(
            config.log.rotation,
            LogRotation {
                max_size: Some(1 << 20),
                max_age: Some(Duration::from_secs(86_400)),
                keep: 2
            }
        );
        let control = &config.control;
        assert_eq!(
            control.operate,
            [
                Who::Uid(1001),
                Who::User("deploy".into()),
                Who::Group("ops".into())
            ]
        );
        assert_eq!(control.observe, [Who::Group("1002".into())]);
        assert_eq!(control.group.as_deref(), Some("ops"));
        assert!(config.trust.keys.are_set() && config.trust.insecure_paths);
        let app = config.app(&name("shop"));
        assert_eq!(app.min_version, Some("1.2.0".parse().unwrap()));
        let routes: Vec<_> = app.routes.iter().map(RoutePrefix::to_string).collect();
        assert_eq!(routes, ["/", "example.org/", "/api"]);
        assert_eq!(
            (app.watch, app.when_full),
            (Watch::Stage, WhenFull::EndOldest)
        );
        assert_eq!(app.drain_deadline, None);
        assert_eq!(app.job_deadline, Some(Duration::from_secs(7200)));
        assert_eq!(app.bake, Some(Duration::from_secs(300)));
        assert_eq!(app.request_timeout, Some(Duration::from_secs(10)));
        assert_eq!(app.max_concurrent.map(NonZeroUsize::get), Some(100));
        assert_eq!(app.queue, 20);
        assert_eq!(
            app.execution,
            Execution::Own {
                threads: NonZeroUsize::new(3)
            }
        );
        assert_eq!((app.max_old_generations, app.keep_artifacts), (2, 0));
        assert_eq!(app.runtime_threads.get(), 2);
        assert_eq!(app.env, ["HOME"]);
        assert_eq!(
            app.config,
            json!({"title": "Shop", "since": "2020-01-02", "deep": {"list": [1, 2.5, true]}})
        );
        assert!(!app.check.start);
        assert_eq!(app.check.deadline, Duration::from_secs(5));
        let requests: Vec<_> = app
            .check
            .requests
            .iter()
            .map(|r| (r.path.as_str(), r.status))
            .collect();
        assert_eq!(requests, [("/healthz", 200), ("/gone", 410)]);
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = read("").unwrap();
        let server = &config.server;
        assert_eq!(server.listen, "127.0.0.1:8080".parse().ok());
        assert_eq!(server.plugins, Path::new("/etc/plugins"));
        assert_eq!(server.control, Path::new("/etc/.handover/control.sock"));
        assert!(!server.version_header);
        assert_eq!(server.timeouts.idle, Some(Duration::from_secs(65)));
        let app = config.app(&name("any"));
        assert!(app.routes.is_empty() && app.env.is_empty() && app.check.start);
        assert_eq!(app.drain_deadline, Some(Duration::from_secs(30)));
        assert_eq!(app.job_deadline, None);
        assert_eq!((app.max_old_generations, app.keep_artifacts), (4, 5));
        assert_eq!(app.config, json!({}));
        let without = Config::without_file().server;
        assert!(without.version_header);
        let here = std::env::current_dir().unwrap();
        assert_eq!(without.plugins, here.join("plugins"));
        assert_eq!(without.control, here.join(".handover/control.sock"));
    }

    #[test]
    fn an_error_says_file_line_key_and_what_to_do() {
        let text = error("[server]\n\nlisten = \"localhost\"\n");
        assert!(
            text.starts_with("/etc/handover.toml:3: server.listen: "),
            "{text}"
        );
        let text = error("[app.shop]\ndrain_deadline = \"soon\"\n");
        assert!(
            text.contains(":2: app.shop.drain_deadline: `soon`")
                && text.contains("\"30s\"")
                && text.contains("none"),
            "{text}"
        );
        let text = error("[app.shop]\nroutes = [\n  \"/a\",\n  \"api\",\n]\n");
        assert!(
            text.contains(":4: app.shop.routes: `api` is not a route"),
            "{text}"
        );
        for (faulty, says) in [
            ("[app.shop.check]\nrequests = [{ path = \"x\" }]", "`/`"),
            (
                "[app.shop.check]\nrequests = [{ path = \"/\", status = 99 }]",
                "99",
            ),
            ("[app.shop]\nenv = [\"A=1\"]", "names only"),
            ("[log]\nlevel = \"a=b=c\"", "log filter"),
            (
                "[trust]\nkeys = [\n\"RW\"]",
                ":3: trust.keys: `RW` is not a public key",
            ),
            ("[control]\noperate = [\"@\"]", "control.operate: `@`"),
            ("[control]\nobserve = [\"deploy\"]", "set control.group"),
            ("[app.shop]\nmin_version = \"2\"", "app.shop.min_version"),
            ("[server]\nworkers = 0", "server.workers"),
            ("[server]\nshutdown_deadline = \"0s\"", "zero"),
            (
                "[server]\nidle_timeout = \"0s\"",
                "server.idle_timeout: it cannot be zero",
            ),
            ("[server]\nmax_connections = 0", "server.max_connections"),
            (
                "[server]\nmax_connections_per_address = 9223372036854775807",
                ":2: server.max_connections_per_address: it cannot be 9223372036854775807",
            ),
            (
                "[server]\nleak_budget = { bytes = \"64MB\" }",
                "`64MB` is not a size",
            ),
            (
                "[app.shop]\nmax_old_generations = 0",
                "a number from 1 to 1000",
            ),
            (
                "[app.shop.labels]\nhost = \"preview.example.org\"",
                "app.shop.labels.host: `preview.example.org` is no host name with a place",
            ),
            ("[app.shop.labels]\nallow = [\"me\"]", "`me` is no network"),
            ("[app.Shop]\n", "`Shop` is not an app name"),
            ("[app.shop.config]\nx = nan", "app.shop.config"),
            ("[server\n", ":1: "),
        ] {
            let text = error(faulty);
            assert!(text.contains(says), "{text}");
        }
    }

    /// Every key, by its table: those that an error about an unknown one offers.
    fn keys_of(table: &str) -> Vec<String> {
        let text = error(&format!("[{table}]\nzzzzzzzz = 1\n"));
        let (_, known) = text.split_once("use one of ").unwrap();
        known.split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn no_value_of_any_key_is_more_than_an_error_with_its_line_and_key() {
        let numbers = [0, 1, -1, i64::MAX, i64::MIN, 1 << 40].map(|number| number.to_string());
        let texts = [
            "400000000000years",
            "18446744073709551615s",
            "3651days",
            "10years",
            "1ns",
            "0s",
            "-1s",
            "99999999999999999999999h",
            "18446744073709551615GiB",
            "16777216GiB",
            "9999999999999999999999B",
            "",
            "\u{0}",
            "none",
            "é",
        ]
        .map(|text| format!("{text:?}").replace("\\0", "\\u0000"));
        let others = [
            "nan",
            "1e400",
            "true",
            "[]",
            "[1]",
            "{}",
            "{ bytes = \"1B\" }",
            "1979-05-27",
        ];
        let values = numbers
            .into_iter()
            .chain(texts)
            .chain(others.map(str::to_owned));
        let tables = [
            "server",
            "control",
            "metrics",
            "trust",
            "log",
            "app.shop",
            "app.shop.check",
            "app.shop.labels",
        ];
        for value in values {
            for table in tables {
                for key in keys_of(table) {
                    let text = format!("# one\n[{table}]\n{key} = {value}\n");
                    match read(&text) {
                        Ok(config) => assert_has_a_place(&config),
                        Err(error) => assert!(
                            error.to_string().contains(&format!(":3: {table}.{key}: "))
                                // Of all of it, which has no line.
                                || key == "config" && error.to_string().contains("app.shop.config"),
                            "{text}: {error}"
                        ),
                    }
                }
            }
        }
        for key in ["bytes", "descriptors", "retained"] {
            let text = error(&format!("[server]\nleak_budget = {{ {key} = -1 }}\n"));
            assert!(text.contains(":2: server.leak_budget: "), "{text}");
        }
    }

    /// Whatever is set can be added to the time of any clock, and started that often.
    fn assert_has_a_place(config: &Config) {
        let (server, app) = (&config.server, config.app(&name("shop")));
        let spans = [
            server.stall_after,
            Some(server.shutdown_deadline),
            Some(server.crash_window),
            config.log.rotation.max_age,
            app.drain_deadline,
            app.job_deadline,
            app.bake,
            app.request_timeout,
            Some(app.check.deadline),
        ];
        assert!(spans.into_iter().flatten().all(|span| span <= LONGEST));
        let threads = [
            server.workers.map_or(1, NonZeroUsize::get),
            server.spare_workers,
            app.runtime_threads.get(),
        ];
        assert!(threads.into_iter().all(|count| count <= THREADS));
    }

    #[test]
    fn an_unknown_key_gets_the_nearest_name() {
        let text = error("[server]\nlisten = \"127.0.0.1:1\"\nworker = 3\n");
        assert!(
            text.contains(":3: server.worker: there is no `worker` here: did you mean `workers`?"),
            "{text}"
        );
        let text = error("[app.shop]\nwatch = \"staged\"\n");
        assert!(text.contains("did you mean `stage`?"), "{text}");
        let text = error("[zzz]\n");
        assert!(
            text.contains("use one of server, listen, control, metrics, trust, log, app"),
            "{text}"
        );
    }

    #[test]
    fn every_key_of_a_listener_is_read() {
        let config = read(
            r#"
            [[listen]]
            address = "[::]:80"
            reuse_port = true
            ipv6_only = true
            protocols = ["h1"]
            proxy_protocol = true
            trusted_proxies = ["10.0.0.0/8", "unix"]
            http_to_https = true
            hsts = "365days"
            canonical_host = "Example.org"
            [[listen]]
            address = "unix:run/web.sock"
            mode = "0600"
            [listen.tls]
            certificates = [{ chain = "a.pem", key = "/keys/a.pem" }]
            client_ca = "ca.pem"
            client_auth = "optional"
            min_version = "1.3"
            [[listen]]
            socket = "web"
            "#,
        )
        .unwrap();
        assert_eq!(config.server.listen, None);
        let [tcp, unix, named] = &config.listen[..] else {
            panic!("{:?}", config.listen);
        };
        assert_eq!(tcp.place, "/etc/handover.toml:2: listen");
        assert_eq!(
            tcp.socket,
            ListenSocket::Address("[::]:80".parse().unwrap())
        );
        assert!(tcp.options.reuse_port && tcp.options.ipv6_only);
        assert!(tcp.protocols.http1 && !tcp.protocols.http2);
        assert!(tcp.proxy_protocol && tcp.http_to_https);
        let trusted = tcp.trusted_proxies.as_ref().unwrap();
        assert!(trusted.trusts(None) && trusted.trusts("10.1.1.1".parse().ok()));
        assert_eq!(tcp.hsts, Some(Duration::from_secs(365 * 86_400)));
        assert_eq!(tcp.canonical_host.as_deref(), Some("example.org"));
        assert_eq!(
            unix.socket,
            ListenSocket::Address(ListenAddress::Unix("/etc/run/web.sock".into()))
        );
        assert_eq!(unix.options.mode, Some(0o600));
        let tls = unix.tls.as_ref().unwrap();
        let files: Vec<_> = tls.files().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(files, ["/etc/a.pem", "/keys/a.pem", "/etc/ca.pem"]);
        assert!(!tls.client_certificate_required);
        assert_eq!(tls.min_version, TlsVersion::Tls13);
        assert_eq!(unix.protocols, Protocols::default());
        assert_eq!(unix.trusted_proxies, Some(TrustedProxies::default()));
        assert_eq!(named.socket, ListenSocket::Named("web".to_owned()));

        let both = "[server]\nlisten = \"127.0.0.1:1\"\n[[listen]]\naddress = \"127.0.0.1:2\"\n";
        let places: Vec<_> = read(both)
            .unwrap()
            .listeners()
            .into_iter()
            .map(|listen| listen.place)
            .collect();
        assert_eq!(places, ["server.listen", "/etc/handover.toml:3: listen"]);
    }

    #[test]
    fn a_listener_that_makes_no_sense_is_told_with_its_line() {
        let web = "[[listen]]\naddress = \"127.0.0.1:80\"\n";
        for (text, line, words) in [
            ("[[listen]]\n".to_owned(), 1, "`address`"),
            (format!("{web}socket = \"web\"\n"), 1, "write one of them"),
            (
                format!("{web}[[listen]]\naddress = \"127.0.0.1:80\"\n"),
                3,
                "listened at already (/etc/handover.toml:1",
            ),
            (
                "[[listen]]\naddress = \"here\"\n".to_owned(),
                2,
                "listen.address: `here` is no address",
            ),
            (
                "[[listen]]\nsocket = \"a:b\"\n".to_owned(),
                2,
                "FileDescriptorName=",
            ),
            (
                format!("{web}mode = \"0660\"\n"),
                1,
                "only a unix socket has a `mode`",
            ),
            (
                "[[listen]]\naddress = \"unix:/x\"\nmode = \"999\"\n".to_owned(),
                3,
                "listen.mode: `999` is no mode",
            ),
            (
                "[[listen]]\naddress = \"unix:/x\"\nreuse_port = true\n".to_owned(),
                1,
                "a unix socket has no port",
            ),
            (
                format!("{web}protocols = []\n"),
                1,
                "`protocols` names none",
            ),
            (
                format!("{web}protocols = [\"h3\"]\n"),
                3,
                "there is no `h3` here",
            ),
            (
                format!("{web}proxy_protocol = true\n"),
                1,
                "trusted_proxies",
            ),
            (
                format!("{web}trusted_proxies = [\n\"10.0.0.0/8\",\n\"10.0.0\"]\n"),
                5,
                "listen.trusted_proxies: `10.0.0` is no network",
            ),
            (
                format!("{web}canonical_host = \"example.org:80\"\n"),
                3,
                "listen.canonical_host",
            ),
            (format!("{web}hsts = \"long\"\n"), 3, "listen.hsts"),
            (
                format!("{web}tls = {{}}\n"),
                3,
                "tls: no certificate is named",
            ),
            (
                format!("{web}[listen.tls]\ncertificates = [{{ chain = \"a\" }}]\n"),
                4,
                "key",
            ),
            (
                format!(
                    "{web}[listen.tls]\ncertificates = [{{ chain = \"a\", key = \"b\" }}]\nclient_auth = \"required\"\n"
                ),
                3,
                "`client_auth` takes a `client_ca`",
            ),
            (
                format!(
                    "{web}tls = {{ certificates = [{{ chain = \"a\", key = \"b\" }}], min_version = \"1.1\" }}\n"
                ),
                3,
                "there is no `1.1` here",
            ),
            (
                format!(
                    "{web}http_to_https = true\ntls = {{ certificates = [{{ chain = \"a\", key = \"b\" }}] }}\n"
                ),
                1,
                "listeners without `tls`",
            ),
            (
                format!("{web}proxies = []\n"),
                3,
                "there is no `proxies` here",
            ),
        ] {
            let error = error(&text);
            assert!(
                error.contains(&format!("handover.toml:{line}: listen")) && error.contains(words),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn two_apps_cannot_have_one_route() {
        let text = error(
            "[app.a]\nroutes = [\"example.org/x\"]\n[app.b]\nroutes = [\"EXAMPLE.org/x/\"]\n",
        );
        assert!(
            text.contains(":4: app.b.routes:") && text.contains("app `a`"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/nowhere/handover.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nowhere/handover.toml: "),
            "{error}"
        );
    }
}
