//! Who may do what: `[control]`, `[metrics]` and `[trust]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Who;
use crate::artifact::Keys;

/// `[control]`: who may call, beside the host's own user and root, who operate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// Who may do everything. Default nobody else.
    pub operate: Vec<Who>,
    /// Who may see status, history and events. Default nobody else.
    pub observe: Vec<Who>,
    /// The group, by name or number, that may open the control socket, which has mode 0660 then.
    /// Default none: 0600.
    pub group: Option<String>,
}

/// `[metrics]`
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where `GET /metrics` is answered over TCP, to whoever reaches it. Default nowhere: on the
    /// control socket only.
    pub listen: Option<SocketAddr>,
    /// Whether it is counted how long requests take. Default no.
    pub request_durations: bool,
}

/// `[trust]`: what may become code of the host.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// Public keys of minisign: an artifact must be signed by one of them. Default none: unsigned
    /// ones are taken.
    pub keys: Keys,
    /// Whether drop folders and the state directory may lie where others can write. Default false.
    pub insecure_paths: bool,
}
