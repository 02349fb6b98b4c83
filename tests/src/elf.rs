//! Other plugins made of a built one by rewriting bytes of its file: versions, ABIs, machines, habits.
//!
//! A rewritten plugin has another SHA-256, so for the host it is another artifact, at the price of a copy instead of a build.

use object::{Object, ObjectSection};
use serde_json::Value;

/// The section with the manifest.
const SECTION: &str = ".handover.manifest";
/// What stands before the JSON: `HANDOVER`, the format and the length, both 32 bits little-endian.
const HEAD: usize = 16;

/// The manifest in the bytes of a plugin.
///
/// # Panics
/// When there is none.
pub fn manifest(bytes: &[u8]) -> Value {
    let at = json_range(bytes);
    serde_json::from_slice(&bytes[at]).expect("the manifest is JSON")
}

/// Rewrites the manifest in place. What is not used of the old length is filled with spaces.
///
/// # Panics
/// When there is no manifest, or the new one is much longer.
pub fn rewrite_manifest(bytes: &mut [u8], change: impl FnOnce(&mut Value)) {
    let at = json_range(bytes);
    let mut json = manifest(bytes);
    change(&mut json);
    let mut text = serde_json::to_vec(&json).expect("JSON can be written");
    while text.len() > at.len() {
        // Room for a longer value: nobody decides anything by the compiler's whole name.
        let Some(Value::String(rustc)) = json.pointer_mut("/build/rustc") else {
            panic!("no room in {json}")
        };
        rustc.pop().expect("there is room");
        text = serde_json::to_vec(&json).expect("JSON can be written");
    }
    text.resize(at.len(), b' ');
    bytes[at].copy_from_slice(&text);
}

/// Names another version in the manifest.
pub fn set_version(bytes: &mut [u8], version: &str) {
    rewrite_manifest(bytes, |manifest| manifest["version"] = version.into());
}

/// Names another ABI version in the manifest.
pub fn set_abi(bytes: &mut [u8], major: u32, minor: u32) {
    rewrite_manifest(bytes, |manifest| {
        manifest["abi"] = serde_json::json!([major, minor])
    });
}

/// Names another format of the manifest, which is the layout of the ABI.
pub fn set_format(bytes: &mut [u8], format: u32) {
    let at = json_range(bytes).start - 8;
    bytes[at..at + 4].copy_from_slice(&format.to_le_bytes());
}

/// Claims another machine in the ELF header; 183 is AArch64.
pub fn set_machine(bytes: &mut [u8], machine: u16) {
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
}

/// Sets the habit of a `misfit`, see there.
///
/// # Panics
/// When the plugin has no place for one.
pub fn set_habit(bytes: &mut [u8], habit: &str) {
    const MARK: &[u8] = b"HANDOVER-FIXTURE-HABIT:";
    const ROOM: usize = 32;
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK)
        .expect("the plugin is a misfit")
        + MARK.len();
    let mut text = habit.as_bytes().to_vec();
    assert!(text.len() <= ROOM);
    text.resize(ROOM, b' ');
    bytes[at..at + ROOM].copy_from_slice(&text);
}

fn json_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let file = object::File::parse(bytes).expect("the plugin is an ELF file");
    let section = file
        .section_by_name(SECTION)
        .expect("the plugin has a manifest");
    let (offset, _) = section.file_range().expect("the manifest is in the file");
    let start = usize::try_from(offset).expect("a file fits in memory");
    assert_eq!(&bytes[start..start + 8], b"HANDOVER");
    let length = u32::from_le_bytes(
        bytes[start + 12..start + HEAD]
            .try_into()
            .expect("four bytes"),
    );
    start + HEAD..start + HEAD + length as usize
}
