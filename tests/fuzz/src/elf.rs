//! A minimal shared object around the bytes of a manifest's section, so that a fuzzer need not find
//! out how ELF works.

const SECTION: &[u8] = b".handover.manifest";
const NOTE: [u8; 36] = *b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab";

/// `json` with the header that stands before it in the section.
pub fn framed(json: &[u8]) -> Vec<u8> {
    let mut section = b"HANDOVER\x01\0\0\0".to_vec();
    section.extend((json.len() as u32).to_le_bytes());
    section.extend(json);
    section
}

/// A shared object of headers, a build id, and `section`.
pub fn around(section: &[u8]) -> Vec<u8> {
    let mut names = b"\0.shstrtab\0".to_vec();
    let section_name = names.len() as u32;
    names.extend(SECTION);
    names.push(0);
    let note_at = 64 + 56;
    let section_at = note_at + NOTE.len();
    let names_at = section_at + section.len();
    let table_at = (names_at + names.len()).next_multiple_of(8);

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let machine: u16 = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    file.extend(3_u16.to_le_bytes()); // a shared object
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes()); // entry
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend((table_at as u64).to_le_bytes()); // section headers
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 3, 1] {
        file.extend(half.to_le_bytes());
    }
    file.extend(4_u32.to_le_bytes()); // a segment of notes
    file.extend(4_u32.to_le_bytes());
    for word in [note_at, 0, 0, NOTE.len(), NOTE.len(), 4] {
        file.extend((word as u64).to_le_bytes());
    }
    file.extend(NOTE);
    file.extend(section);
    file.extend(&names);
    file.resize(table_at, 0);
    let mut header = |name: u32, kind: u32, at: usize, size: usize| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, at as u64, size as u64, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
    };
    header(0, 0, 0, 0);
    header(1, 3, names_at, names.len());
    header(section_name, 1, section_at, section.len());
    file
}
