//! Header fields across the boundary: borrowed in a table during the call, copied by the receiver into one buffer.
//!
//! Names that HTTP registers cross as an index into [`STANDARD`]; its order is part of the ABI, and it only grows at its end.

use std::{
    hash::{Hash, Hasher},
    sync::LazyLock,
};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

use super::keep;

/// The fields that most heads do with; also what fits in the smallest map but one.
const USUAL_FIELDS: usize = 6;

/// The index of a name that is not in [`STANDARD`].
const CUSTOM: u16 = u16::MAX;

/// One header field.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Field<'a> {
    value: RSlice<'a, u8>,
    /// The name, where `index` is `CUSTOM`; else empty.
    name: RStr<'a>,
    index: u16,
    sensitive: bool,
}

/// The fields of one head, borrowed from a `HeaderMap`.
pub type Fields<'a> = SmallVec<[Field<'a>; 24]>;

/// Lists the fields of `map` in `fields`, in its order. The list is filled where it lies, as it is large.
#[inline]
pub fn borrow<'a>(map: &'a HeaderMap, fields: &mut Fields<'a>) {
    let indices = Indices::get();
    for (name, value) in map {
        let index = indices.of(name);
        fields.push(Field {
            value: value.as_bytes().into(),
            name: if index == CUSTOM {
                name.as_str().into()
            } else {
                "".into()
            },
            index,
            sensitive: value.is_sensitive(),
        });
    }
}

/// The values of a head in one buffer, and the slices cut from it.
pub(super) struct Buffer(Bytes);

impl Buffer {
    /// Copies `first` and then all values of `fields`, in order.
    #[inline]
    pub(super) fn copy(first: &[u8], fields: &[Field<'_>]) -> Self {
        let length = first.len() + fields.iter().map(|field| field.value.len()).sum::<usize>();
        let values = fields.iter().map(|field| field.value.as_slice());
        Self(keep::copy(length, std::iter::once(first).chain(values)))
    }

    /// The next `length` bytes.
    #[inline]
    pub(super) fn next(&mut self, length: usize) -> Bytes {
        self.0.split_to(length)
    }

    /// Puts `fields` into `map`. `first` must have been taken.
    ///
    /// A name that HTTP does not allow is left out: the other side took its names from a `HeaderMap`, so there is none.
    #[inline]
    pub(super) fn fields(mut self, fields: &[Field<'_>], map: &mut HeaderMap) {
        // Maps go round, from one head to the next (`keep`): one that fits the usual head fits all of those.
        map.reserve(fields.len().max(USUAL_FIELDS));
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
            map.append(name, value);
        }
    }
}

impl Field<'_> {
    /// Whether it says that the body has `length` bytes, as everybody writes that.
    pub(super) fn is_length(&self, length: usize) -> bool {
        let digits = self.value.as_slice();
        let says = || {
            digits.iter().try_fold(0_usize, |number, digit| {
                let digit = char::from(*digit).to_digit(10)? as usize;
                number.checked_mul(10)?.checked_add(digit)
            })
        };
        STANDARD.get(usize::from(self.index)) == Some(&header::CONTENT_LENGTH)
            && !digits.is_empty()
            && (digits[0] != b'0' || digits.len() == 1)
            && says() == Some(length)
    }
}

/// From a standard name to its index.
///
/// `http` numbers these names itself, but tells their numbers only by the way that a name hashes. So the number is what a hasher finds
/// out, and the index that stands there is believed only if its name is the one that was asked for.
struct Indices([u8; 256]);

/// The last number that was hashed.
#[derive(Default)]
struct LastNumber(u8);

impl Hasher for LastNumber {
    #[inline]
    fn write(&mut self, _: &[u8]) {}

    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.0 = number as u8;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0.into()
    }
}

impl Indices {
    fn get() -> &'static Self {
        static INDICES: LazyLock<Indices> = LazyLock::new(|| {
            let mut indices = [u8::MAX; 256];
            for (index, name) in (0..).zip(&STANDARD) {
                indices[Indices::slot(name)] = index;
            }
            Indices(indices)
        });
        &INDICES
    }

    #[inline]
    fn slot(name: &HeaderName) -> usize {
        let mut number = LastNumber::default();
        name.hash(&mut number);
        usize::from(number.0)
    }

    #[inline]
    fn of(&self, name: &HeaderName) -> u16 {
        let index = u16::from(self.0[Self::slot(name)]);
        match STANDARD.get(usize::from(index)) {
            Some(standard) if standard == name => index,
            _ => CUSTOM,
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

#[cfg(test)]
mod tests {
    use super::*;

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
