//! Who may call: roles of the users and groups that `[control]` names.

use std::collections::BTreeSet;

use nix::unistd::{Gid, Group, Uid, User};

use crate::config::{self, Who};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing.
    None,
    /// See status, history, events and the log.
    Observe,
    /// Everything.
    Operate,
}

/// Who has which role. The user of the host and root operate, whatever is configured.
#[derive(Clone, Debug, Default)]
pub struct Access {
    operate: Party,
    observe: Party,
}

/// Users and groups, by number.
#[derive(Clone, Debug, Default)]
struct Party {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

/// A caller, as the kernel vouches for it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

impl Access {
    /// Looks the users and groups of the configuration up. Blocks.
    ///
    /// # Errors
    /// The first one that this machine does not know.
    pub fn resolve(control: &config::Control) -> Result<Self, String> {
        Ok(Self {
            operate: Party::resolve("operate", &control.operate)?,
            observe: Party::resolve("observe", &control.observe)?,
        })
    }

    /// What `peer` may do. Blocks where groups are configured: the system is asked who is in them.
    pub fn role(&self, peer: Peer) -> Role {
        let own = Uid::effective().as_raw();
        if peer.uid == own || peer.uid == 0 || self.operate.has(peer) {
            Role::Operate
        } else if self.observe.has(peer) {
            Role::Observe
        } else {
            Role::None
        }
    }
}

impl Party {
    fn resolve(key: &str, names: &[Who]) -> Result<Self, String> {
        let mut party = Self::default();
        for who in names {
            match who {
                Who::Uid(uid) => drop(party.users.insert(*uid)),
                Who::User(name) => {
                    let found = User::from_name(name).ok().flatten().ok_or_else(|| {
                        format!(
                            "control.{key} names the user `{name}`, whom this machine does not know: make it, or write its number"
                        )
                    })?;
                    party.users.insert(found.uid.as_raw());
                }
                Who::Group(name) => {
                    party.groups.insert(
                        group(name).ok_or_else(|| format!("control.{key}: {}", no_group(name)))?,
                    );
                }
            }
        }
        Ok(party)
    }

    fn has(&self, peer: Peer) -> bool {
        self.users.contains(&peer.uid)
            || !self.groups.is_empty()
                && (self.groups.contains(&peer.gid)
                    || memberships(peer)
                        .iter()
                        .any(|gid| self.groups.contains(&gid.as_raw())))
    }
}

/// The number of the group that has this name or number.
pub(crate) fn group(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let found = Group::from_name(name).ok().flatten()?;
    Some(found.gid.as_raw())
}

/// The sentence about a group that nobody knows.
pub(crate) fn no_group(name: &str) -> String {
    format!("this machine does not know the group `{name}`: make it, or write its number")
}

/// The groups of the user, as the system's files have them.
fn memberships(peer: Peer) -> Vec<Gid> {
    let user = User::from_uid(Uid::from_raw(peer.uid)).ok().flatten();
    let name = user.and_then(|user| std::ffi::CString::new(user.name).ok());
    name.and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(peer.gid)).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn access(operate: &[&str], observe: &[&str]) -> Result<Access, String> {
        let all = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        Access::resolve(&config::Control {
            operate: all(operate),
            observe: all(observe),
            group: None,
        })
    }

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer { uid, gid }
    }

    #[test]
    fn only_the_same_user_and_root_may_command_where_nothing_is_set() {
        let access = Access::default();
        let own = Uid::effective().as_raw();
        assert_eq!(access.role(peer(own, 7)), Role::Operate);
        assert_eq!(access.role(peer(0, 7)), Role::Operate);
        assert_eq!(access.role(peer(own + 4321, 0)), Role::None);
    }

    #[test]
    fn users_and_groups_have_the_better_of_their_roles() {
        let access = access(&["70001", "@70011"], &["70002", "@70012", "70001"]).unwrap();
        assert_eq!(access.role(peer(70001, 1)), Role::Operate);
        assert_eq!(access.role(peer(70009, 70011)), Role::Operate);
        assert_eq!(access.role(peer(70002, 1)), Role::Observe);
        assert_eq!(access.role(peer(70009, 70012)), Role::Observe);
        assert_eq!(access.role(peer(70009, 1)), Role::None);
    }

    #[test]
    fn names_are_looked_up_and_unknown_ones_are_told() {
        access(&["root", "@root"], &[]).unwrap();
        let error = access(&[], &["nobody-has-this-name"]).unwrap_err();
        assert!(
            error.contains("control.observe names the user `nobody-has-this-name`"),
            "{error}"
        );
        let error = access(&["@nobody-has-this-name"], &[]).unwrap_err();
        assert!(error.contains("control.operate"), "{error}");
    }
}
