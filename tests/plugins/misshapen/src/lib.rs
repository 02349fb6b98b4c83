//! A plugin whose manifest is in order, and whose table has another shape than the ABI that it
//! claims.
#![allow(
    missing_docs,
    reason = "`export_root_module` makes a static that has none"
)]

use abi_stable::{
    StableAbi, export_root_module, library::RootModule, package_version_strings,
    prefix_type::PrefixTypeTrait, sabi_types::VersionStrings,
};
use handover_plugin::abi::manifest::Facts;

/// One entry where there should be six.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// Not what `start` is.
    #[sabi(last_prefix_field)]
    pub start: extern "C" fn(u32) -> u32,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "handover_plugin";
    const NAME: &'static str = "handover_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

extern "C" fn start(number: u32) -> u32 {
    number
}

/// The table.
#[export_root_module]
pub fn root() -> RootRef {
    Root { start }.leak_into_prefix()
}

const FACTS: Facts = Facts {
    app: "misshapen",
    version: "1.0.0",
    schema: 0,
    profile: "debug",
    panic: "unwind",
    commit: "",
    dirty: false,
    lockfile: "",
};

/// What it says of itself.
#[used]
// SAFETY: the section holds plain bytes that nobody executes, and no other symbol has this name.
#[unsafe(no_mangle)]
// SAFETY: as above.
#[unsafe(link_section = ".handover.manifest")]
pub static HANDOVER_MANIFEST: [u8; FACTS.length()] = FACTS.section();
