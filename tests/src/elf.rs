//! Other plugins made of a built one by rewriting bytes of its file: versions, ABIs, machines,
//! habits.
//!
//! A rewritten plugin has another SHA-256, so for the host it is another artifact, at the price of
//! a copy instead of a build.

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

/// Sets the habit of a `misfit` or a `leaver`, see there.
///
/// # Panics
/// When the plugin has no place for one.
pub fn set_habit(bytes: &mut [u8], habit: &str) {
    const MARK: &[u8] = b"HANDOVER-FIXTURE-HABIT:";
    const ROOM: usize = 32;
    let at = bytes
        .windows(MARK.len())
        .position(|window| window == MARK)
        .expect("the plugin has habits")
        + MARK.len();
    let mut text = habit.as_bytes().to_vec();
    assert!(text.len() <= ROOM);
    text.resize(ROOM, b' ');
    bytes[at..at + ROOM].copy_from_slice(&text);
}

/// Sets the read-only data of a `leaver`, see there.
///
/// # Panics
/// When the plugin has no place for it.
pub fn set_texts(bytes: &mut [u8], texts: &[u8]) {
    const MARK: &[u8] = b"HANDOVER-FIXTURE-TEXTS:";
    let at = position(bytes, MARK).expect("the plugin is a leaver") + MARK.len();
    assert!(texts.len() <= 128);
    bytes[at..at + texts.len()].copy_from_slice(texts);
}

/// Sets bits of the value that an entry of the dynamic section has.
///
/// # Panics
/// When there is no such entry.
pub fn set_dynamic_bits(bytes: &mut [u8], tag: u64, bits: u64) {
    let at = dynamic(bytes, tag) + 8;
    let value = word(bytes, at) | bits;
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Marks the stack as executable.
///
/// # Panics
/// When there is no program header for the stack.
pub fn set_executable_stack(bytes: &mut [u8]) {
    const PT_GNU_STACK: u32 = 0x6474_e551;
    let headers = usize::try_from(word(bytes, 32)).expect("a file fits in memory");
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let header = (0..count)
        .map(|number| headers + number * 56)
        .find(|at| bytes[*at..*at + 4] == PT_GNU_STACK.to_le_bytes())
        .expect("every linker writes that header");
    bytes[header + 4] |= 1;
}

/// Needs a library of another name of the same length instead.
///
/// # Panics
/// When it does not need the first.
pub fn need_instead(bytes: &mut [u8], library: &str, other: &str) {
    assert_eq!(library.len(), other.len());
    let strings = dynamic_strings(bytes);
    let old = [b"\0", library.as_bytes(), b"\0"].concat();
    let at = strings.start
        + position(&bytes[strings.clone()], &old).expect("the plugin needs the library")
        + 1;
    bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
}

/// Looks for the libraries that it needs in `folder`, which is short: in the place of a count and
/// of a name that do without.
///
/// # Panics
/// When the plugin was linked without them.
pub fn set_search_path(bytes: &mut [u8], folder: &str) {
    const DT_RELACOUNT: u64 = 0x6fff_fff9;
    const DT_RUNPATH: u64 = 29;
    // A weak symbol that is nowhere defined is as undefined by another name.
    const NAME: &[u8] = b"\0_ITM_deregisterTMCloneTable\0";
    assert!(folder.len() < NAME.len() - 1);
    let strings = dynamic_strings(bytes);
    let name = position(&bytes[strings.clone()], NAME).expect("gcc's startup code is linked") + 1;
    let mut text = folder.as_bytes().to_vec();
    text.push(0);
    bytes[strings.start + name..][..text.len()].copy_from_slice(&text);
    let entry = dynamic(bytes, DT_RELACOUNT);
    bytes[entry..entry + 8].copy_from_slice(&DT_RUNPATH.to_le_bytes());
    bytes[entry + 8..entry + 16].copy_from_slice(&(name as u64).to_le_bytes());
}

/// Where the entry of the dynamic section with `tag` lies.
fn dynamic(bytes: &[u8], tag: u64) -> usize {
    let range = section(bytes, ".dynamic");
    range
        .step_by(16)
        .find(|at| word(bytes, *at) == tag)
        .unwrap_or_else(|| panic!("the dynamic section has no entry {tag:#x}"))
}

fn dynamic_strings(bytes: &[u8]) -> std::ops::Range<usize> {
    section(bytes, ".dynstr")
}

fn section(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
    let file = object::File::parse(bytes).expect("the plugin is an ELF file");
    let section = file.section_by_name(name).expect("every plugin has it");
    let (offset, size) = section.file_range().expect("it is in the file");
    let offset = usize::try_from(offset).expect("a file fits in memory");
    offset..offset + usize::try_from(size).expect("a file fits in memory")
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
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
