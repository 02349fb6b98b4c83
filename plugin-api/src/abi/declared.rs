//! What the functions of a plugin declare by their attributes: jobs and schedules, found without a
//! list that somebody has to keep.
//!
//! Each declaration leaves two things in the library. A line of JSON in the section [`SECTION`],
//! which a host reads from the file, so no code runs. And an entry in a section whose bounds the
//! linker names, which the SDK in the same library walks: nothing of that crosses.

use std::any::Any;

/// The section with the lines.
pub const SECTION: &str = ".handover.declared";

/// An entry: what the SDK made of a declaration.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Declared(pub &'static (dyn Any + Send + Sync));

impl std::fmt::Debug for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Declared")
    }
}

/// There is such a section in every library, declarations or not: else the linker would not name
/// its bounds.
#[cfg(feature = "sdk")]
#[used]
#[unsafe(link_section = "handover_declared")]
static NONE: [Declared; 0] = [];

#[cfg(feature = "sdk")]
unsafe extern "C" {
    #[link_name = "__start_handover_declared"]
    static FIRST: u8;
    #[link_name = "__stop_handover_declared"]
    static END: u8;
}

/// The entries of this library, or of this program.
#[cfg(feature = "sdk")]
pub fn declared() -> &'static [Declared] {
    let (first, end) = (&raw const FIRST, &raw const END);
    let bytes = end.addr().saturating_sub(first.addr());
    // SAFETY: the linker puts the statics of this section between both, and nothing else is put
    // there than by the macros, each a `Declared`, whose size is a multiple of its alignment.
    unsafe { std::slice::from_raw_parts(first.cast(), bytes / size_of::<Declared>()) }
}

/// The bytes of a line for the section [`SECTION`].
pub const fn line<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut line = [b'\n'; N];
    let mut at = 0;
    while at < bytes.len() && at < N {
        line[at] = bytes[at];
        at += 1;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_the_end_of_a_line() {
        assert_eq!(line::<3>("{}"), *b"{}\n");
    }
}
