//! What is mapped in this process, as the kernel lists it in `/proc/self/maps`.

use std::{fs, io, ops::Range};

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Its addresses.
    pub range: Range<usize>,
    /// Whether it may be written.
    pub is_writable: bool,
    /// Whether what is written stays with this process.
    pub is_private: bool,
    /// Whether code of it may run.
    pub is_code: bool,
    /// The device of its file, as `major:minor`.
    pub device: String,
    /// The inode of its file; zero where it has none.
    pub inode: u64,
    /// The path of its file, or a name of the kernel's such as `[heap]`; empty where it has none.
    pub name: String,
}

/// All mappings, by their addresses.
///
/// # Errors
/// When the kernel does not list them.
pub(crate) fn mappings() -> io::Result<Vec<Mapping>> {
    let maps = fs::read("/proc/self/maps")?;
    let lines = maps.split(|byte| *byte == b'\n');
    // Names of files may be no text.
    Ok(lines
        .filter_map(|line| Mapping::parse(&String::from_utf8_lossy(line)))
        .collect())
}

impl Mapping {
    /// Reads `address perms offset dev inode name`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let permissions = fields.next()?;
        let device = fields.nth(1)?.to_owned();
        Some(Self {
            range,
            is_writable: permissions.contains('w'),
            is_private: permissions.ends_with('p'),
            is_code: permissions.contains('x'),
            device,
            inode: fields.next()?.parse().ok()?,
            name: fields.next().unwrap_or_default().trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name_of_its_file() {
        let line = "2000-3000 r-xp 00000000 08:01 7                  /usr/lib/libcb v2.so.1";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.range, 0x2000..0x3000);
        assert!(mapping.is_code && mapping.is_private && !mapping.is_writable);
        assert_eq!((&*mapping.device, mapping.inode), ("08:01", 7));
        assert_eq!(mapping.name, "/usr/lib/libcb v2.so.1");
        let anonymous = Mapping::parse("1000-2000 rw-p 00000000 00:00 0 ").unwrap();
        assert!(anonymous.is_writable && anonymous.inode == 0 && anonymous.name.is_empty());
        assert_eq!(Mapping::parse(""), None);
    }

    #[test]
    fn a_process_has_its_stack_among_them() {
        let here = 0_u8;
        let all = mappings().unwrap();
        let of_stack = |mapping: &&Mapping| mapping.range.contains(&(&raw const here).addr());
        assert!(
            all.iter()
                .any(|mapping| of_stack(&mapping) && mapping.is_writable)
        );
    }
}
