//! XSAVE and its family (SDM vol. 1, chapter 13).
//!
//! The state itself is KVM's, in the standard format; what is written to the guest is laid out from it, and the other way.

use iced_x86::Mnemonic;

use crate::emulate::area::{Area, EXTENDED, HEADER, MXCSR_INIT, compacted, legacy, standard};
use crate::emulate::cpu::control;
use crate::emulate::exception::{DEVICE_NOT_AVAILABLE, Exception};
use crate::emulate::linear::{Access, Trouble};
use crate::emulate::step::Step;

const MSR_XSS: u32 = 0xda0;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;

/// Which components an instruction is about, and where its area is.
struct Request {
    address: u64,
    /// RFBM.
    components: u64,
    /// What the layout may have at all.
    enabled: u64,
    /// With REX.W, pointers to instruction and operand have 64 bits.
    wide: bool,
}

fn available(step: &Step<'_>) -> Result<(), Trouble> {
    if step.cpu.sregs.cr4 & control::CR4_OSXSAVE == 0 {
        return Err(Exception::invalid_opcode().into());
    }
    Ok(())
}

fn request(step: &Step<'_>, supervisor: bool) -> Result<Request, Trouble> {
    available(step)?;
    if step.cpu.sregs.cr0 & control::CR0_TS != 0 {
        return Err(Exception::fault(DEVICE_NOT_AVAILABLE).into());
    }
    if supervisor && step.cpu.cpl() != 0 {
        return Err(Exception::protection().into());
    }
    let address = step.address()?;
    if address % 64 != 0 {
        return Err(Exception::protection().into());
    }
    let regs = &step.cpu.regs;
    let mask = regs.rdx << 32 | regs.rax & 0xffff_ffff;
    let mut enabled = step.beyond.xcr0()?;
    if supervisor {
        let system = step.beyond.msr(MSR_XSS)?;
        // KVM's area has no place for supervisor components.
        if system & mask != 0 {
            return Err(Trouble::Unknown);
        }
        enabled |= system;
    }
    let wide = is_wide(step.instruction.mnemonic());
    Ok(Request { address, components: enabled & mask, enabled, wide })
}

pub(super) fn xgetbv(step: &mut Step<'_>) -> Result<(), Trouble> {
    available(step)?;
    let value = match step.cpu.regs.rcx as u32 {
        0 => step.beyond.xcr0()?,
        // XINUSE.
        1 => Area::of(&*step.beyond.xsave()?).used() & step.beyond.xcr0()?,
        _ => return Err(Exception::protection().into()),
    };
    step.cpu.regs.rax = value & 0xffff_ffff;
    step.cpu.regs.rdx = value >> 32;
    Ok(())
}

pub(super) fn xsetbv(step: &mut Step<'_>) -> Result<(), Trouble> {
    available(step)?;
    let regs = &step.cpu.regs;
    let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
    let incomplete = value & legacy::AVX != 0 && value & legacy::SSE == 0;
    let bad = regs.rcx as u32 != 0 || value & legacy::X87 == 0 || incomplete;
    if step.cpu.cpl() != 0 || bad {
        return Err(Exception::protection().into());
    }
    // KVM refuses what its guest's CPUID does not offer.
    step.beyond.set_xcr0(value).map_err(|_| Exception::protection().into())
}

/// XSAVE and XSAVEOPT. The latter may leave out what has not changed, and does not have to.
pub(super) fn xsave(step: &mut Step<'_>) -> Result<(), Trouble> {
    let asked = request(step, false)?;
    let area = Area::of(&*step.beyond.xsave()?);
    let mut header = [0; 8];
    step.memory.read(asked.address + HEADER as u64, &mut header, Access::Read)?;
    save_legacy(step, &asked, &area, asked.components)?;
    if asked.components & (legacy::SSE | legacy::AVX) != 0 {
        save_mxcsr(step, &asked, &area)?;
    }
    for component in extended(asked.components) {
        let place = standard(component).ok_or(Trouble::Unknown)?;
        step.memory.write(asked.address + place.start as u64, area.bytes(place))?;
    }
    let kept = u64::from_le_bytes(header) & !asked.components;
    let used = kept | area.used() & asked.components;
    step.memory.write(asked.address + HEADER as u64, &used.to_le_bytes())
}

pub(super) fn xsavec(step: &mut Step<'_>) -> Result<(), Trouble> {
    let asked = request(step, false)?;
    save_compacted(step, &asked)
}

pub(super) fn xsaves(step: &mut Step<'_>) -> Result<(), Trouble> {
    let asked = request(step, true)?;
    save_compacted(step, &asked)
}

fn save_compacted(step: &Step<'_>, asked: &Request) -> Result<(), Trouble> {
    let area = Area::of(&*step.beyond.xsave()?);
    let mut used = area.used() & asked.components;
    // SSE counts as in use while MXCSR is not as it was at reset.
    if asked.components & legacy::SSE != 0 && area.u32_at(legacy::MXCSR) != MXCSR_INIT {
        used |= legacy::SSE;
    }
    save_legacy(step, asked, &area, used)?;
    if used & legacy::SSE != 0 {
        save_mxcsr(step, asked, &area)?;
    }
    for (component, place) in compacted(asked.components) {
        if used >> component & 1 != 0 {
            let from = standard(component).ok_or(Trouble::Unknown)?;
            step.memory.write(asked.address + place.start as u64, area.bytes(from))?;
        }
    }
    let mut header = [0; EXTENDED - HEADER];
    header[..8].copy_from_slice(&used.to_le_bytes());
    header[8..16].copy_from_slice(&(asked.components | COMPACTED).to_le_bytes());
    step.memory.write(asked.address + HEADER as u64, &header[..16])
}

/// x87 and XMM, without MXCSR.
fn save_legacy(
    step: &Step<'_>,
    asked: &Request,
    area: &Area,
    components: u64,
) -> Result<(), Trouble> {
    if components & legacy::X87 != 0 {
        let mut head = area.bytes(0..legacy::MXCSR).to_vec();
        if !asked.wide {
            drop_selectors(&mut head);
        }
        step.memory.write(asked.address, &head)?;
        let registers = area.bytes(legacy::ST..legacy::XMM);
        step.memory.write(asked.address + legacy::ST as u64, registers)?;
    }
    if components & legacy::SSE != 0 {
        let registers = area.bytes(legacy::XMM..legacy::XMM_END);
        step.memory.write(asked.address + legacy::XMM as u64, registers)?;
    }
    Ok(())
}

/// Where pointers have 32 bits their selectors are, which no processor of today saves or loads.
fn drop_selectors(head: &mut [u8]) {
    head[legacy::FIP + 4..legacy::FIP + 8].fill(0);
    head[legacy::FIP + 12..legacy::FIP + 16].fill(0);
}

fn save_mxcsr(step: &Step<'_>, asked: &Request, area: &Area) -> Result<(), Trouble> {
    let bytes = area.bytes(legacy::MXCSR..legacy::ST);
    step.memory.write(asked.address + legacy::MXCSR as u64, bytes)
}

pub(super) fn xrstor(step: &mut Step<'_>) -> Result<(), Trouble> {
    let asked = request(step, false)?;
    restore(step, &asked, false)
}

pub(super) fn xrstors(step: &mut Step<'_>) -> Result<(), Trouble> {
    let asked = request(step, true)?;
    restore(step, &asked, true)
}

fn restore(step: &Step<'_>, asked: &Request, compacted_only: bool) -> Result<(), Trouble> {
    let mut header = [0; EXTENDED - HEADER];
    step.memory.read(asked.address + HEADER as u64, &mut header, Access::Read)?;
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let (used, layout) = (word(0), word(8));
    let is_compacted = layout & COMPACTED != 0;
    let wrong = if is_compacted {
        let components = layout & !COMPACTED;
        components & !asked.enabled != 0
            || used & !components != 0
            || header[16..].iter().any(|byte| *byte != 0)
    } else {
        compacted_only || used & !asked.enabled != 0 || header[8..24].iter().any(|byte| *byte != 0)
    };
    if wrong {
        return Err(Exception::protection().into());
    }
    let mut area = Area::of(&*step.beyond.xsave()?);
    let read = |at: usize, into: &mut [u8]| {
        step.memory.read(asked.address + at as u64, into, Access::Read)
    };
    let load = asked.components & used;
    for component in (0..2).chain(extended(asked.components)) {
        if asked.components >> component & 1 != 0 && load >> component & 1 == 0 {
            area.reset(component);
        }
    }
    if load & legacy::X87 != 0 {
        read(0, area.bytes_mut(0..legacy::MXCSR))?;
        if !asked.wide {
            drop_selectors(area.bytes_mut(0..legacy::MXCSR));
        }
        read(legacy::ST, area.bytes_mut(legacy::ST..legacy::XMM))?;
    }
    if load & legacy::SSE != 0 {
        read(legacy::XMM, area.bytes_mut(legacy::XMM..legacy::XMM_END))?;
    }
    let mxcsr = match is_compacted {
        true if load & legacy::SSE != 0 => true,
        true => {
            if asked.components & legacy::SSE != 0 {
                area.set_mxcsr(MXCSR_INIT)?;
            }
            false
        }
        false => asked.components & (legacy::SSE | legacy::AVX) != 0,
    };
    if mxcsr {
        let mut raw = [0; 4];
        read(legacy::MXCSR, &mut raw)?;
        area.set_mxcsr(u32::from_le_bytes(raw))?;
    }
    let places = if is_compacted {
        compacted(layout & !COMPACTED)
    } else {
        let place = |component| Some((component, standard(component)?));
        extended(asked.enabled).filter_map(place).collect()
    };
    for (component, place) in places {
        if load >> component & 1 != 0 {
            let to = standard(component).ok_or(Trouble::Unknown)?;
            read(place.start, area.bytes_mut(to))?;
        }
    }
    area.mark_used(load);
    step.beyond.set_xsave(&area.into_kvm())
}

/// The components of `mask` behind the legacy region.
fn extended(mask: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |component| mask >> component & 1 != 0)
}

/// Whether the instruction is a form with REX.W.
fn is_wide(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    )
}
