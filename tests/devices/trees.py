"""Files of the kernel's as machines have them, below a folder of a test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

AGX_ORIN = {
    # Recorded on R36.4.7; hwmon numbers differ between boots. 19864 mV x 180 mA is the recorded triple, the others are
    # chosen to fit the same board's tegrastats line: 3178, 794 and 4543 mW.
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/update_interval": "430\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "19864\n",
    "sys/class/hwmon/hwmon3/curr1_input": "180\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "19864\n",
    "sys/class/hwmon/hwmon3/curr2_input": "40\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "4984\n",
    "sys/class/hwmon/hwmon3/curr3_input": "912\n",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon3/in7_input": "1\n",
    "sys/class/hwmon/hwmon4/name": "ina3221\n",
    "sys/class/hwmon/hwmon4/in1_label": "NC\n",
    "sys/class/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO\n",
    "sys/class/hwmon/hwmon4/in2_input": "4984\n",
    "sys/class/hwmon/hwmon4/curr2_input": "100\n",
    "sys/class/hwmon/hwmon4/in3_label": "NC\n",
}
AGX_ORIN_W = (19864 * 180 + 19864 * 40 + 4984 * 912) / 1e6

ORIN_NANO = {
    # Recorded on R36.4.3.
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "4984\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1856\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "4984\n",
    "sys/class/hwmon/hwmon1/curr2_input": "343\n",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "1\n",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "2\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "435200000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
}
ORIN_NANO_W = 4984 * 1856 / 1e6

THOR = {
    # Recorded on R38.4.
    "sys/class/hwmon/hwmon4/name": "ina238\n",
    "sys/class/hwmon/hwmon4/label": "VIN\n",
    "sys/class/hwmon/hwmon4/power1_input": "20986000\n",
    "sys/class/hwmon/hwmon5/name": "ina3221\n",
    "sys/class/hwmon/hwmon5/in1_label": "VDD_GPU\n",
    "sys/class/hwmon/hwmon5/in1_input": "19864\n",
    "sys/class/hwmon/hwmon5/curr1_input": "-20\n",
    "sys/class/hwmon/hwmon5/in2_label": "VDD_CPU_SOC_MSS\n",
    "sys/class/hwmon/hwmon5/in2_input": "19856\n",
    "sys/class/hwmon/hwmon5/curr2_input": "300\n",
    "sys/class/hwmon/hwmon5/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon5/in3_input": "4984\n",
    "sys/class/hwmon/hwmon5/curr3_input": "1000\n",
    "sys/class/hwmon/hwmon5/in7_label": "sum of shunt voltages\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "0\n",
    "sys/class/devfreq/gpu-gpc-0/min_freq": "315000000\n",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
}
THOR_W = 20.986
THOR_RAILS_W = (19864 * -20 + 19856 * 300 + 4984 * 1000) / 1e6

PC = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "52649883221\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "99\n",
}


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write ``files`` below ``root`` and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
