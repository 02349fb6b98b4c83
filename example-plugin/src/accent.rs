//! The one colour an operator may choose, and the shades of it that stay readable on both
//! backgrounds.

use serde::Deserialize;

/// A colour as `#rgb` or `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Accent([u8; 3]);

impl Default for Accent {
    fn default() -> Self {
        Self([0xc2, 0x41, 0x0c])
    }
}

impl TryFrom<String> for Accent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text
            .strip_prefix('#')
            .map(str::as_bytes)
            .unwrap_or_default();
        let digit = |n: usize| char::from(digits[n]).to_digit(16).map(|value| value as u8);
        let pair = |n: usize| Some(digit(n)? * 16 + digit(n + 1)?);
        let colour = match digits.len() {
            3 => (|| Some([digit(0)? * 17, digit(1)? * 17, digit(2)? * 17]))(),
            6 => (|| Some([pair(0)?, pair(2)?, pair(4)?]))(),
            _ => None,
        };
        colour
            .map(Self)
            .ok_or_else(|| format!("`accent = \"{text}\"` is no colour: write it like \"#c2410c\""))
    }
}

const BLACK: [u8; 3] = [0; 3];
const WHITE: [u8; 3] = [255; 3];
/// The darkest light and the lightest dark surface of `site.css` that carries text in the accent.
const LIGHT_SURFACE: [u8; 3] = [0xf6, 0xf3, 0xee];
const DARK_SURFACE: [u8; 3] = [0x24, 0x20, 0x1d];
/// WCAG AA for text of normal size.
const READABLE: f64 = 4.5;

impl Accent {
    /// The custom properties that `site.css` builds on.
    pub(crate) fn css(self) -> String {
        let on_accent = if contrast(self.0, WHITE) >= READABLE {
            WHITE
        } else {
            BLACK
        };
        format!(
            ":root{{--accent:{};--on-accent:{};--accent-ink-light:{};--accent-ink-dark:{}}}\n",
            hex(self.0),
            hex(on_accent),
            hex(readable(self.0, LIGHT_SURFACE, BLACK)),
            hex(readable(self.0, DARK_SURFACE, WHITE)),
        )
    }
}

/// `colour`, mixed with `towards` as little as makes it readable on `surface`.
fn readable(colour: [u8; 3], surface: [u8; 3], towards: [u8; 3]) -> [u8; 3] {
    (0..=20)
        .map(|step| mix(colour, towards, f64::from(step) / 20.0))
        .find(|shade| contrast(*shade, surface) >= READABLE)
        .unwrap_or(towards)
}

fn mix(a: [u8; 3], b: [u8; 3], share: f64) -> [u8; 3] {
    std::array::from_fn(|n| {
        let (a, b) = (f64::from(a[n]), f64::from(b[n]));
        (a + (b - a) * share).round() as u8
    })
}

/// The contrast ratio of WCAG 2: from 1 to 21.
fn contrast(a: [u8; 3], b: [u8; 3]) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance(colour: [u8; 3]) -> f64 {
    let [r, g, b] = colour.map(|byte| {
        let c = f64::from(byte) / 255.0;
        if c <= 0.040_45 {
            c / 12.92
        } else {
            ((c + 0.055) / 1.055).powf(2.4)
        }
    });
    0.2126 * r + 0.7152 * g + 0.0722 * b
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn colours_are_written_as_in_css() {
        let of = |text: &str| Accent::try_from(text.to_owned());
        assert_eq!(of("#0af").unwrap(), Accent([0x00, 0xaa, 0xff]));
        assert_eq!(of("#00AAff").unwrap(), Accent([0x00, 0xaa, 0xff]));
        for bad in [
            "", "#", "red", "00aaff", "#00aaf", "#00aagg", "#é00", "#0af;}",
        ] {
            assert!(of(bad).unwrap_err().contains("is no colour"), "{bad}");
        }
    }

    #[test]
    fn every_accent_is_readable_on_light_and_on_dark() {
        for colour in [
            [255, 255, 0],
            [0, 0, 0],
            [255, 255, 255],
            [0xc2, 0x41, 0x0c],
            [119; 3],
        ] {
            let light = readable(colour, LIGHT_SURFACE, BLACK);
            let dark = readable(colour, DARK_SURFACE, WHITE);
            assert!(contrast(light, LIGHT_SURFACE) >= READABLE, "{colour:?}");
            assert!(contrast(dark, DARK_SURFACE) >= READABLE, "{colour:?}");
        }
    }
}
