//! Header fields across the boundary: borrowed in a table during the call, copied by the receiver
//! into one buffer.
//!
//! Names that HTTP registers cross as an index into [`STANDARD`]; its order is part of the ABI, and
//! it only grows at its end.

use std::{
    hash::{Hash, Hasher},
    mem::MaybeUninit,
    sync::LazyLock,
};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::pool;

/// The index of a name that is not in [`STANDARD`].
const CUSTOM: u16 = u16::MAX;

/// The index of `content-length`.
const CONTENT_LENGTH: u16 = 24;

/// The value is not to be logged or compressed into a table: a bit of a field's flags. Bits that
/// are not known are ignored.
const SENSITIVE: u8 = 1;

/// One header field. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Field<'a> {
    pub(super) value: RSlice<'a, u8>,
    /// The name, where `index` is `CUSTOM`; else empty.
    pub(super) name: RStr<'a>,
    pub(super) index: u16,
    pub(super) flags: u8,
}

/// Up to so many fields are listed on the stack.
const ON_STACK: usize = 24;

/// Lends the fields of `map` to `f`, in their order. With `whole`, a `content-length` that says
/// just that is left out.
#[inline]
pub fn lend<R>(map: &HeaderMap, whole: Option<usize>, f: impl FnOnce(&[Field<'_>]) -> R) -> R {
    let indices = Indices::get();
    let mut stack = [const { MaybeUninit::<Field<'_>>::uninit() }; ON_STACK];
    let mut listed = 0;
    let mut heap = Vec::new();
    if map.len() > ON_STACK {
        heap.reserve_exact(map.len());
    }
    for (name, value) in map {
        let value_bytes = value.as_bytes();
        let index = indices.of(name);
        if index == CONTENT_LENGTH && whole.is_some_and(|whole| is_number(value_bytes, whole)) {
            continue;
        }
        let field = Field {
            value: value_bytes.into(),
            name: if index == CUSTOM {
                name.as_str().into()
            } else {
                "".into()
            },
            index,
            flags: u8::from(value.is_sensitive()) * SENSITIVE,
        };
        if heap.capacity() > 0 {
            heap.push(field);
        } else {
            stack[listed].write(field);
            listed += 1;
        }
    }
    // In one place, so that it becomes part of this.
    f(if heap.capacity() > 0 {
        &heap
    } else {
        // SAFETY: so many were written.
        unsafe { stack[..listed].assume_init_ref() }
    })
}

/// Whether `digits` is how everybody writes `number`.
#[inline]
fn is_number(digits: &[u8], number: usize) -> bool {
    let mut said = 0usize;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return false;
        }
        said = said.wrapping_mul(10).wrapping_add(usize::from(digit));
    }
    // So many digits do not wrap, and say a number only once if the first of them is no 0.
    said == number && (1..=18).contains(&digits.len()) && (digits[0] != b'0' || digits.len() == 1)
}

/// The values of a head in one buffer, and the slices cut from it.
pub(super) struct Buffer(Bytes);

impl Buffer {
    /// Copies `first` and then all values of `fields`, in order, and gives `map`, which is new,
    /// room for the fields.
    #[inline(always)] // each side has one caller that is not for trailers
    pub(super) fn copy(first: &[u8], fields: &[Field<'_>], map: &mut HeaderMap) -> Self {
        let mut length = first.len();
        for field in fields {
            // They are few: were the sum made four at a time, what is left over would cost more
            // than all.
            length = length
                .checked_add(field.value.len())
                .expect("all of it is in memory");
        }
        Self(pool::head(length, fields.len(), map, |room| {
            room.put(first);
            for field in fields {
                room.put(field.value.as_slice());
            }
        }))
    }

    /// The next `length` bytes.
    #[inline]
    pub(super) fn next(&mut self, length: usize) -> Bytes {
        self.0.split_to(length)
    }

    /// Puts `fields` into `map`, in which there is nothing yet. `first` must have been taken.
    ///
    /// A name that HTTP does not allow is left out, and one more than a map can hold: the other
    /// side took its names from a `HeaderMap`, so there is none.
    #[inline(always)] // each side has one caller that is not for trailers
    pub(super) fn fields(mut self, fields: &[Field<'_>], map: &mut HeaderMap) {
        for field in fields {
            let value = self.next(field.value.len());
            let name = match STANDARD.get(usize::from(field.index)) {
                Some(name) => name.clone(),
                None => match pool::name(field.name.as_bytes()) {
                    Some(name) => name,
                    None => continue,
                },
            };
            // SAFETY: the bytes are those of a `HeaderValue` of the other side (`lend`), so they
            // are a valid value.
            let mut value = unsafe { HeaderValue::from_maybe_shared_unchecked(value) };
            if field.flags & SENSITIVE != 0 {
                value.set_sensitive(true);
            }
            let _ = map.try_append(name, value);
        }
    }
}

/// From a standard name to its index.
///
/// `http` numbers these names itself, but tells their numbers only by the way that a name hashes:
/// as numbers alone, of which the last is the name's, while any other name hashes its bytes. Did it
/// not, names would cross by their text.
struct Indices([u16; 256]);

/// What a name hashes.
#[derive(Default)]
struct Hashed {
    last_number: isize,
    has_bytes: bool,
}

impl Hasher for Hashed {
    #[inline]
    fn write(&mut self, _: &[u8]) {
        self.has_bytes = true;
    }

    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.last_number = number;
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl Indices {
    fn get() -> &'static Self {
        static INDICES: LazyLock<Indices> = LazyLock::new(|| {
            let mut indices = [CUSTOM; 256];
            for (index, name) in (0..).zip(&STANDARD) {
                match Indices::number(name).and_then(|number| indices.get_mut(number)) {
                    Some(free) if *free == CUSTOM => *free = index,
                    // Its number does not tell it from another one.
                    _ => return Indices([CUSTOM; 256]),
                }
            }
            Indices(indices)
        });
        &INDICES
    }

    /// The number of a name that has one.
    #[inline]
    fn number(name: &HeaderName) -> Option<usize> {
        let mut hashed = Hashed::default();
        name.hash(&mut hashed);
        (!hashed.has_bytes).then_some(hashed.last_number as usize)
    }

    #[inline]
    fn of(&self, name: &HeaderName) -> u16 {
        Self::number(name)
            .and_then(|number| self.0.get(number).copied())
            .unwrap_or(CUSTOM)
    }
}

/// The names that cross by their place in this list.
static STANDARD: [HeaderName; 81] = [
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::ACCEPT_RANGES,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    header::ACCESS_CONTROL_REQUEST_HEADERS,
    header::ACCESS_CONTROL_REQUEST_METHOD,
    header::AGE,
    header::ALLOW,
    header::ALT_SVC,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CACHE_STATUS,
    header::CDN_CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_SECURITY_POLICY,
    header::CONTENT_SECURITY_POLICY_REPORT_ONLY,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DNT,
    header::DATE,
    header::ETAG,
    header::EXPECT,
    header::EXPIRES,
    header::FORWARDED,
    header::FROM,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::PUBLIC_KEY_PINS,
    header::PUBLIC_KEY_PINS_REPORT_ONLY,
    header::RANGE,
    header::REFERER,
    header::REFERRER_POLICY,
    header::REFRESH,
    header::RETRY_AFTER,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    header::SERVER,
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::USER_AGENT,
    header::UPGRADE,
    header::UPGRADE_INSECURE_REQUESTS,
    header::VARY,
    header::VIA,
    header::WARNING,
    header::WWW_AUTHENTICATE,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_DNS_PREFETCH_CONTROL,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_says_nothing_new_does_not_cross() {
        assert_eq!(
            STANDARD[usize::from(CONTENT_LENGTH)],
            header::CONTENT_LENGTH
        );
        for (digits, number, is) in [
            ("0", 0, true),
            ("11", 11, true),
            ("1048576", 1 << 20, true),
            ("", 0, false),
            ("00", 0, false),
            ("011", 11, false),
            ("12", 11, false),
            ("111", 11, false),
            ("1", 11, false),
            ("+1", 1, false),
        ] {
            assert_eq!(
                is_number(digits.as_bytes(), number),
                is,
                "{digits} {number}"
            );
        }
    }

    #[test]
    fn every_standard_name_crosses_by_its_index() {
        for (index, name) in STANDARD.iter().enumerate() {
            assert_eq!(usize::from(Indices::get().of(name)), index, "{name}");
        }
        for name in ["x-custom", "a", "cookie2"] {
            assert_eq!(Indices::get().of(&HeaderName::from_static(name)), CUSTOM);
        }
    }
}
