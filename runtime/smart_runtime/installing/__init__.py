"""Plans for a device, before anything is served from them: built, proved on the device, and tidied up."""
