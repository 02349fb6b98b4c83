//! The manifest reader, whole: bytes of a file, ELF, section, JSON.
//!
//! The first byte says how the rest is to be taken: as a whole file (`f`), as the manifest's
//! section of a sound file (`s`), as the JSON in a sound section (`j`), or as a sound file with
//! some bytes changed (`p`: two bytes of place and one of value, again and again).
#![no_main]

use handover::testing::{Manifest, StoreError, elf, inspect};
use handover_fuzz::{
    elf::{around, framed},
    file::MemoryFile,
};
use libfuzzer_sys::fuzz_target;

const SOUND: &[u8] =
    br#"{"app":"shop","version":"1.2.3","abi":[1,0],"schema":4,"build":{"panic":"unwind"}}"#;

fn bytes(input: &[u8]) -> Option<Vec<u8>> {
    let (how, rest) = input.split_first()?;
    Some(match how {
        b'f' => rest.to_vec(),
        b's' => around(rest),
        b'j' => around(&framed(rest)),
        b'p' => {
            let mut file = around(&framed(SOUND));
            for patch in rest.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
                let length = file.len();
                file[at % length] = patch[2];
            }
            file
        }
        _ => return None,
    })
}

fuzz_target!(|input: &[u8]| {
    let Some(bytes) = bytes(input) else { return };
    let file = MemoryFile::new(&bytes);
    let truncated = elf::is_truncated(file.file()).expect("a file in memory can be read");
    match elf::read(file.file()) {
        Ok(_) => assert!(!truncated, "read, and called truncated"),
        Err(elf::ElfError::Truncated { have, need }) => {
            assert!(truncated, "truncated, and not called so");
            assert!(need > have, "{need} bytes needed, {have} there");
        }
        Err(elf::ElfError::Io(error)) => {
            panic!("a fault of the file is no fault of the disk: {error}")
        }
        Err(error) => assert!(!truncated, "damaged, and called truncated: {error}"),
    }
    match inspect(file.path()) {
        Ok(artifact) => {
            assert_eq!(artifact.size, bytes.len() as u64);
            let again = Manifest::from_section(&artifact.manifest.to_section());
            assert_eq!(again.expect("it was one"), artifact.manifest);
            if let Err(reason) = artifact.acceptable() {
                assert!(!reason.is_empty());
            }
        }
        Err(StoreError::Refused { reason, .. }) => assert!(!reason.is_empty()),
        Err(error) => panic!("a fault of the file is no fault of the disk: {error}"),
    }
});
