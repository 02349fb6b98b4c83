//! Header fields across the boundary: borrowed in a table during the call, copied by the receiver into one buffer.
//!
//! Names that HTTP registers cross as an index into [`STANDARD`]; its order is part of the ABI, and it only grows at its end.

use std::sync::OnceLock;

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// The fields that most heads do with; also what fits in the smallest map but one.
const USUAL_FIELDS: usize = 6;

/// The index of a name that is not in [`STANDARD`].
const CUSTOM: u16 = u16::MAX;

/// One header field.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Field<'a> {
    pub(super) value: RSlice<'a, u8>,
    /// The name, where `index` is `CUSTOM`; else empty.
    pub(super) name: RStr<'a>,
    pub(super) index: u16,
    pub(super) sensitive: bool,
}

/// The fields of one head, borrowed from a `HeaderMap`.
pub type Fields<'a> = SmallVec<[Field<'a>; 24]>;

/// Lists the fields of `map` in `fields`, in its order. The list is filled where it lies, as it is large.
#[inline]
pub fn borrow<'a>(map: &'a HeaderMap, fields: &mut Fields<'a>) {
    let names = Names::get();
    for (name, value) in map {
        let name = name.as_str();
        let index = names.index(name);
        fields.push(Field {
            value: value.as_bytes().into(),
            name: if index == CUSTOM {
                name.into()
            } else {
                "".into()
            },
            index,
            sensitive: value.is_sensitive(),
        });
    }
}

/// One buffer for everything that a head carries as text, and the slices cut from it.
///
/// Up to 384 bytes it takes one allocation, beyond that two.
pub(super) struct Buffer {
    bytes: Bytes,
    cut: usize,
}

/// Bytes that lie within the allocation that counts their references.
struct Inline<const N: usize> {
    length: usize,
    bytes: [u8; N],
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Inline<N> {
    fn copy<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Bytes {
        let mut inline = Self {
            length: 0,
            bytes: [0; N],
        };
        for part in parts {
            let end = inline.length + part.len();
            inline.bytes[inline.length..end].copy_from_slice(part);
            inline.length = end;
        }
        Bytes::from_owner(inline)
    }
}

impl Buffer {
    /// Copies `first` and then all values of `fields`, in order.
    pub(super) fn copy(first: &[u8], fields: &[Field<'_>]) -> Self {
        let parts = std::iter::once(first).chain(fields.iter().map(|field| field.value.as_slice()));
        let bytes = match first.len() + fields.iter().map(|field| field.value.len()).sum::<usize>()
        {
            0 => Bytes::new(),
            1..=96 => Inline::<96>::copy(parts),
            97..=384 => Inline::<384>::copy(parts),
            length => {
                let mut vec = Vec::with_capacity(length);
                parts.for_each(|part| vec.extend_from_slice(part));
                vec.into()
            }
        };
        Self { bytes, cut: 0 }
    }

    /// The next `length` bytes.
    #[inline]
    pub(super) fn next(&mut self, length: usize) -> Bytes {
        let from = self.cut;
        self.cut += length;
        self.bytes.slice(from..self.cut)
    }

    /// Puts `fields` into `map`. `first` must have been taken.
    ///
    /// A name that HTTP does not allow is left out, and one more than a map can hold: the other side took its names from a `HeaderMap`,
    /// so there is none.
    pub(super) fn fields(mut self, fields: &[Field<'_>], map: &mut HeaderMap) {
        // Hyper takes the map of a response for the next request of the connection, if that fits.
        // An error means more fields than a map can have names: they are values of fewer names then.
        let _ = map.try_reserve(fields.len().max(USUAL_FIELDS));
        for field in fields {
            let value = self.next(field.value.len());
            let name = match STANDARD.get(usize::from(field.index)) {
                Some(name) => name.clone(),
                None => match HeaderName::from_bytes(field.name.as_bytes()) {
                    Ok(name) => name,
                    Err(_) => continue,
                },
            };
            // SAFETY: the bytes are those of a `HeaderValue` of the other side (`borrow`), so they are a valid value.
            let mut value = unsafe { HeaderValue::from_maybe_shared_unchecked(value) };
            if field.sensitive {
                value.set_sensitive(true);
            }
            let _ = map.try_append(name, value);
        }
    }
}

/// From the text of a standard name to its index: a hash table with open addressing, made once.
struct Names {
    slots: [u8; Self::SLOTS],
}

impl Names {
    const SLOTS: usize = 512;
    const FREE: u8 = u8::MAX;

    fn get() -> &'static Self {
        static NAMES: OnceLock<Names> = OnceLock::new();
        NAMES.get_or_init(|| {
            let mut slots = [Self::FREE; Self::SLOTS];
            for (index, name) in (0..).zip(&STANDARD) {
                let mut slot = Self::slot(name.as_str());
                while slots[slot] != Self::FREE {
                    slot = (slot + 1) % Self::SLOTS;
                }
                slots[slot] = index;
            }
            Self { slots }
        })
    }

    /// Length, first, middle and last byte tell the standard names apart almost always.
    #[inline]
    fn slot(name: &str) -> usize {
        let bytes = name.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return 0;
        };
        let word = u32::from_le_bytes([bytes.len() as u8, *first, bytes[bytes.len() / 2], *last]);
        // Fibonacci hashing: the high bits of the product are well mixed.
        (word.wrapping_mul(0x9E37_79B9) >> 23) as usize % Self::SLOTS
    }

    #[inline]
    fn index(&self, name: &str) -> u16 {
        let mut slot = Self::slot(name);
        loop {
            match self.slots[slot] {
                Self::FREE => return CUSTOM,
                index if STANDARD[usize::from(index)].as_str() == name => return index.into(),
                _ => slot = (slot + 1) % Self::SLOTS,
            }
        }
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
