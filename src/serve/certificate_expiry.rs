//! Certificate expiry: reads `notAfter` of the broker's own certificate, for metrics and `doctor`.
//!
//! In: a certificate (DER). Out: its `notAfter`. Decides nothing: clients verify the certificate.
//! Written here because no X.509 parser is among the broker's dependencies (rustls exposes none), and one field needs none.

use crate::model::Timestamp;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `version`, the one optional field before the dates.
const VERSION: u8 = 0xa0;

/// RFC 5280 §4.1: `Certificate { tbsCertificate { [0] version, serialNumber, signature, issuer, validity { notBefore,
/// notAfter }, …`. `None` for any other form.
pub(super) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = inside(certificate, SEQUENCE)?;
    let (fields, _) = inside(certificate, SEQUENCE)?;
    let fields = match next(fields)? {
        (VERSION, _, rest) => rest,
        _ => fields,
    };
    let after_serial = skip(fields)?;
    let after_signature = skip(after_serial)?;
    let after_issuer = skip(after_signature)?;
    let (validity, _) = inside(after_issuer, SEQUENCE)?;
    let (tag, text, _) = next(skip(validity)?)?;
    date(tag, text)
}

/// Tag, content and the rest.
fn next(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*first) {
        short @ ..=0x7f => (short, rest),
        // Up to three bytes of length: 16 MiB, far above any certificate's file.
        long @ 0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(long - 0x80)?;
            let length = digits
                .iter()
                .fold(0, |n, byte| n * 256 + usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn inside(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = next(der)?;
    (found == tag).then_some((content, rest))
}

/// The rest after the first value.
fn skip(der: &[u8]) -> Option<&[u8]> {
    next(der).map(|(_, _, rest)| rest)
}

/// `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` from then on (RFC 5280 §4.1.2.5).
fn date(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| {
        digits
            .iter()
            .fold(0_i32, |n, digit| n * 10 + i32::from(digit - b'0'))
    };
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            // §4.1.2.5.1.
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| {
        let pair = rest.get(at..at + 2)?;
        u8::try_from(number(pair)).ok()
    };
    let month = time::Month::try_from(part(0)?).ok()?;
    let day = time::Date::from_calendar_date(year, month, part(2)?).ok()?;
    let moment = day.with_hms(part(4)?, part(6)?, part(8)?).ok()?;
    Some(Timestamp::from_secs(moment.assume_utc().unix_timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("made");
        params.not_after = rcgen::date_time_ymd(year, 3, 1);
        let key = rcgen::KeyPair::generate().expect("key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn utc_time_and_generalized_time() {
        // 2049 is the last year that is written with two digits.
        for (year, secs) in [
            (2030, 1_898_553_600),
            (2049, 2_498_169_600),
            (2050, 2_529_705_600),
            (2100, 4_107_542_400),
        ] {
            assert_eq!(
                not_after(&made(year)),
                Some(Timestamp::from_secs(secs)),
                "{year}"
            );
        }
    }

    #[test]
    fn truncated_der_is_rejected() {
        let whole = made(2030);
        for end in 0..whole.len().min(200) {
            assert_eq!(not_after(&whole[..end]), None, "{end}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _read = not_after(&changed);
            }
        }
        assert_eq!(date(UTC_TIME, b"991332000000Z"), None);
        assert_eq!(date(UTC_TIME, b"300301000000+0100"), None);
    }
}
