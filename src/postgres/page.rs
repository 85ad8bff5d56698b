//! Owns the checksum of a data page: whether 8 kB of a relation are what the server wrote.
//!
//! The algorithm is FNV-1a over 32 lanes of 32-bit words, with the carry-less mixing step that
//! `src/include/storage/checksum_impl.h` describes; the header's fields are those of `storage/bufpage.h`
//! on a little-endian machine. Data checksums exist from 9.3 on and have not changed since.

use super::wal::Lsn;

/// Bytes of a page; other sizes exist only in servers built for them.
pub const PAGE: usize = 8192;
/// Pages in one file of a relation (`RELSEG_SIZE`): a gigabyte.
pub const PAGES_PER_SEGMENT: u32 = 131_072;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each lane begins (`checksumBaseOffsets`).
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn mix(sum: u32, word: u32) -> u32 {
    let mixed = sum ^ word;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The checksum of a page that is the `block`th of its relation, whatever stands in its checksum field.
/// `page` has [`PAGE`] bytes.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let mut words = [0u32; LANES];
    for (row, chunk) in page.chunks_exact(LANES * 4).enumerate() {
        for (word, bytes) in words.iter_mut().zip(chunk.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        }
        if row == 0 {
            // The checksum's own field counts as zero.
            words[2] &= 0xFFFF_0000;
        }
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, word);
        }
    }
    // Two rounds of zeroes mix the last words in.
    for sum in &mut sums {
        *sum = mix(mix(*sum, 0), 0);
    }
    let all = sums.into_iter().fold(0, |all, sum| all ^ sum);
    // Never 0, so that zero can mean none.
    ((all ^ block) % 65_535 + 1) as u16
}

/// Whether a page is whole: its checksum is right, or it is a new one, which is all zeroes.
pub fn is_sound(page: &[u8], block: u32) -> bool {
    let upper = u16::from_le_bytes([page[14], page[15]]);
    if upper == 0 {
        return page.iter().all(|byte| *byte == 0);
    }
    checksum(page, block) == u16::from_le_bytes([page[8], page[9]])
}

/// The position of the last change of a page.
pub fn lsn(page: &[u8]) -> Lsn {
    let half = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes")));
    Lsn((half(0) << 32) | half(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first page of an index (pg_class_relname_nsp_index) as 15.18 wrote it: of its 8,192 bytes those that
    /// are not zero.
    fn real() -> Vec<u8> {
        let mut page = vec![0u8; PAGE];
        for line in include_str!("../../tests/fixtures/page/15-2663-0").lines() {
            let (at, bytes) = line.split_once(' ').unwrap();
            let at: usize = at.parse().unwrap();
            for (i, pair) in bytes.as_bytes().chunks(2).enumerate() {
                page[at + i] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            }
        }
        page
    }

    #[test]
    fn a_page_of_a_real_server_is_sound_at_its_own_place_only() {
        let page = real();
        assert!(is_sound(&page, 0));
        assert!(!is_sound(&page, 1));
        assert!(lsn(&page) > Lsn::ZERO);
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let page = real();
        for at in [0, 7, 8, 9, 10, 100, 4096, 8191] {
            let mut damaged = page.clone();
            damaged[at] ^= 0x10;
            assert!(!is_sound(&damaged, 0), "byte {at}");
        }
    }

    #[test]
    fn a_new_page_is_sound_and_one_that_only_claims_to_be_is_not() {
        let mut page = vec![0; PAGE];
        assert!(is_sound(&page, 77));
        page[5000] = 1;
        assert!(!is_sound(&page, 77));
    }
}
