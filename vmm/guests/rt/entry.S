/*
 * From the boot protocol to CPL 3, and back for exceptions.
 *
 * Ring 0 is kept as short as it can be: everything a processor wants in memory (page tables, GDT, IDT, TSSs, the frame that
 * IRETQ pops) is laid out by the assembler, so ring 0 only loads registers. The reasons: the guests measure the monitor,
 * and the less they do before the first byte the better; a monitor may have to emulate privileged code but never CPL 3; and
 * compiled code with SSE in it then needs no thought about who saves what.
 *
 * I/O ports are opened to CPL 3 by the permission bitmap in the TSS, port by port, not by IOPL: exactly the three devices
 * of the guests' ABI, and a stray `out` is reported as the #GP that it is.
 *
 * SDM means Intel's Software Developer's Manual, volume 3.
 */

.set KERNEL_CS, 0x10            /* the boot protocol's __BOOT_CS */
.set USER_CS, 0x20 | 3
.set USER_SS, 0x28 | 3
.set FIRST_TR, 0x30             /* CPU n's task register is FIRST_TR + 16 * n: smp.rs */

/*
 * Constants, not read-modify-write: it is as important what is off. SMEP and SMAP must be, because ring 0 runs and reads
 * pages that CPL 3 may use; TSD must be, because CPL 3 reads the TSC.
 */
.set CR4, 1 << 5 | 1 << 9 | 1 << 10                         /* PAE, OSFXSR, OSXMMEXCPT */
.set CR0, 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1  /* PG, WP, NE, ET, MP, PE; EM and TS off: SSE */
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8

/* From a mode without paging straight to long mode, where a far jump leads: PE and PG are set in one write. */
.macro enter_long_mode gdtr, label
    lgdtl \gdtr
    movl $CR4, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    movl $EFER_LME, %eax
    xorl %edx, %edx
    wrmsr
    movl $CR0, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS, $\label
.endm

/* ---- Boot CPU: 64-bit entry of the Linux boot protocol, RSI = struct boot_params ---- */

.section .text.entry, "ax"
.code64
.globl _start
_start:
    movl $CR4, %eax
    movq %rax, %cr4
    movl $pml4, %eax
    movq %rax, %cr3
    movl $CR0, %eax
    movq %rax, %cr0
    lgdt gdtr
    lidt idtr
    movl $FIRST_TR, %eax
    ltr %ax
    movq %rsi, %rdi
    movl $boot_frame, %esp
    iretq

/* ---- Boot CPU: PVH's entry, for other monitors. 32-bit protected mode without paging, EBX = struct hvm_start_info ---- */

.set INFO_CMDLINE, 24
.set INFO_MEMMAP, 40
.set INFO_MEMMAP_ENTRIES, 48
.set PARAMS_E820_ENTRIES, 0x1e8
.set PARAMS_CMDLINE, 0x228
.set PARAMS_E820, 0x2d0
.set E820_MAX, 128

.code32
pvh_start:
    movl INFO_CMDLINE(%ebx), %eax
    movl %eax, pvh_params + PARAMS_CMDLINE
    movl INFO_MEMMAP_ENTRIES(%ebx), %edx
    cmpl $E820_MAX, %edx
    jbe 1f
    movl $E820_MAX, %edx
1:  movb %dl, pvh_params + PARAMS_E820_ENTRIES
    movl INFO_MEMMAP(%ebx), %esi
    movl $(pvh_params + PARAMS_E820), %edi
    cld
2:  testl %edx, %edx
    jz 3f
    movl $5, %ecx               /* address, size and type are the same in both; then comes a reserved word */
    rep movsl
    addl $4, %esi
    decl %edx
    jmp 2b
3:  enter_long_mode gdtr, pvh_long_mode
.code64
pvh_long_mode:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $pvh_params, %esi
    jmp _start

.section .note.pvh, "a", @note
.balign 4
    .long 4, 4, 18              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

/* ---- Application CPUs: copied to a page below 1 MiB, entered by SIPI in real mode with CS:IP = page:0 ---- */

.section .data
.code16
.globl trampoline, trampoline_end
trampoline:
    enter_long_mode "%cs:(trampoline_gdtr - trampoline)", ap_long_mode
trampoline_gdtr:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

.section .text.entry, "ax"
.code64
ap_long_mode:
    lidt idtr
    movl ap_boot_tr, %eax
    ltr %ax
    movq ap_boot_index, %rdi
    movl $ap_boot, %esp
    iretq

/* ---- Exceptions ---- */

/*
 * One 16-byte stub a vector: an error code where the processor pushes none (SDM table 7-1), then the number. #BP is not
 * reported: INT3 is how CPL 3 asks for `cli; hlt`. (An exception, and not `int n`: a monitor without hardware help has to
 * emulate the latter, and KVM's instruction emulator knows it in real mode only.)
 */
.section .vectors, "ax"
.globl vectors
vectors:
.set vector, 0
.rept 32
    .balign 16
    .if vector == {HALT_VECTOR}
halt:
        cli
0:      hlt
        jmp 0b
    .else
        .if (0x60227d00 >> vector) & 1 == 0
            pushq $0
        .endif
        pushq $vector
        jmp exception
    .endif
    .set vector, vector + 1
.endr

/*
 * Leaves ring 0 at once, to a reporter at CPL 3 that gets the pushed words (they stay on the ring-0 stack, which CPL 3 can
 * read). It has a stack of its own, since a bad stack may be the reason. A second exception (the reporter's own, or
 * another CPU's) ends the guest here, so that nothing can loop.
 */
.section .text.entry, "ax"
exception:
    movl $1, %eax
    xchgl %eax, exception_taken
    testl %eax, %eax
    jnz 1f
    movq %rsp, %rdi
    movq %cr2, %rsi
    movl $exception_frame, %esp
    iretq
1:  movb ${EXCEPTION_VERDICT}, %al
    movw ${EXIT_PORT}, %dx
    outb %al, %dx
    jmp halt

/* ---- Tables ---- */

.section .data.tables, "aw"
/* The boot CPU's stack is painted, so it is part of the image: what is zero is filled at its first touch, and that fault
   would come before the first byte of output. */
.balign 4096
boot_stack:
    .fill {STACK_SIZE}, 1, 0xa5

/*
 * Identity map of the low 4 GiB in 2 MiB pages, U/S = 1 throughout, so CPL 3 reaches RAM and the local APIC alike; what lies
 * above is added by paging.rs. Accessed and dirty are set, so the processor never writes here. Not 1 GiB pages: CPUID need
 * not offer them.
 */
.set TABLE, 0x67                /* P, R/W, U/S, A, D */
.set PAGE_2M, 0xe7              /* ... and PS */
.balign 4096
pml4:
    .quad pdpt + TABLE
    .fill 511, 8, 0
.globl pdpt
pdpt:
    .quad low_pds + TABLE, low_pds + 0x1000 + TABLE, low_pds + 0x2000 + TABLE, low_pds + 0x3000 + TABLE
    .fill 508, 8, 0
low_pds:
.set page, 0
.rept 4 * 512
    .quad page << 21 | PAGE_2M
    .set page, page + 1
.endr

/* Selectors 0x10 and 0x18 are those of the boot protocol, so CS and SS need no reload. */
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    /* 0x10: code, 64-bit, DPL 0 */
    .quad 0x00cf93000000ffff    /* 0x18: data, DPL 0 */
    .quad 0x00affb000000ffff    /* 0x20: code, 64-bit, DPL 3 */
    .quad 0x00cff3000000ffff    /* 0x28: data, DPL 3 */
.set cpu, 0
.rept {MAX_CPUS}
    .quad tss_descriptor + (cpu * 512 << 16), 0
    .set cpu, cpu + 1
.endr
gdt_end:

/* 64-bit interrupt gates (SDM figure 7-8). Only that of INT3 has DPL 3. */
.globl idt
idt:
.set vector, 0
.rept 32
    .set stub, {IMAGE_BASE} + 16 * vector
    .word stub & 0xffff, KERNEL_CS
    .if vector == {HALT_VECTOR}
        .word 0xee00
    .else
        .word 0x8e00
    .endif
    .word stub >> 16
    .quad 0
    .set vector, vector + 1
.endr
idt_end:

gdtr:
    .word gdt_end - gdt - 1
    .quad gdt
idtr:
    .word idt_end - idt - 1
    .quad idt

/* What IRETQ pops: RIP, CS, RFLAGS, RSP, SS. RSP is as after a CALL: 8 below a multiple of 16. */
.balign 8
boot_frame:
    .quad {start}, USER_CS, 2, boot_stack + {STACK_SIZE} - 8, USER_SS
exception_frame:
    .quad {report}, USER_CS, 2, exception_stack_top - 8, USER_SS
/* Of one application CPU at a time: smp.rs, struct ApBoot. */
.globl ap_boot
ap_boot:
    .quad {ap_start}, USER_CS, 2, 0, USER_SS
ap_boot_tr:
    .quad 0
ap_boot_index:
    .quad 0
exception_taken:
    .long 0

/*
 * 512 bytes a CPU: a 64-bit TSS (SDM figure 9-11), its I/O permission bitmap for ports 0 to 0x3ff with the byte of ones that
 * must follow it (SDM 9.7, vol. 1 19.5.2), and the ring-0 stack, which never holds more than one exception.
 */
.balign 512
.globl tss
tss:
.set cpu, 0
.rept {MAX_CPUS}
    .long 0
    .quad tss + 512 * (cpu + 1) /* RSP0 */
    .fill 90, 1, 0
    .word 104                   /* where the bitmap starts */
    .fill 0x64 / 8, 1, 0xff
    .byte ~(1 << 4) & 0xff      /* 0x64: i8042 command */
    .fill 0xf4 / 8 - 0x64 / 8 - 1, 1, 0xff
    .byte ~(1 << 4) & 0xff      /* 0xf4: debug exit */
    .fill 0x3f8 / 8 - 0xf4 / 8 - 1, 1, 0xff
    .byte 0                     /* 0x3f8 to 0x3ff: UART */
    .byte 0xff
    .balign 512
    .set cpu, cpu + 1
.endr

/* The other CPUs' stacks; the first is nobody's. Behind what is small and used at once (link.ld). */
.section .bss.large, "aw", @nobits
.balign 4096
pvh_params:
    .skip 4096
.globl stacks
stacks:
    .skip {MAX_CPUS} * {STACK_SIZE}
    .skip 8192
exception_stack_top:
